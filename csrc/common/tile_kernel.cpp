#include "common/tile_kernel.h"

#include <algorithm>
#include <cstring>

#include "common/cpu.h"

#if EASYEDIT_FAST_HAS_X86
#include <immintrin.h>
#endif

namespace easyedit_fast {
namespace {

using std::int64_t;

constexpr int kPanels = 3;  // of a tile: rows = lanes / 2, so that sums and operands fill the registers

void multiply_generic(int64_t steps, const void* a, const void* b, int64_t panel_words, int panels, float* tile) {
  constexpr int kLanes = 8;
  constexpr int kRows = 4;
  std::memset(tile, 0, sizeof(float) * kRows * kPanels * kLanes);
  for (int panel = 0; panel < panels; ++panel) {
    for (int64_t first = 0; first < steps; first += kTermsPerSum) {
      const float* left = static_cast<const float*>(a) + first * kLanes;
      const float* right = static_cast<const float*>(b) + panel * panel_words + first * kLanes;
      float sum[kRows][kLanes] = {};
      for (int64_t step = std::min(kTermsPerSum, steps - first); step > 0; --step, left += kLanes, right += kLanes) {
        for (int row = 0; row < kRows; ++row) {
          for (int lane = 0; lane < kLanes; ++lane) sum[row][lane] += left[row] * right[lane];
        }
      }
      for (int row = 0; row < kRows; ++row) {
        for (int lane = 0; lane < kLanes; ++lane) tile[(row * kPanels + panel) * kLanes + lane] += sum[row][lane];
      }
    }
  }
}

constexpr TileKernel kGeneric{8, 4, 24, 1, 1, 256, false, multiply_generic};

#if EASYEDIT_FAST_HAS_X86
// 4 x 3 sums of 8 lanes, 3 vectors of b and one of a: all 16 registers.
template <int kCount>
EASYEDIT_FAST_FOR_AVX2 void multiply_add_avx2(int64_t steps, const float* a, const float* b, int64_t panel_words,
                                              float* tile) {
  for (int64_t first = 0; first < steps; first += kTermsPerSum) {
    __m256 sum[4][kCount] = {};
    for (int64_t step = std::min(kTermsPerSum, steps - first); step > 0; --step, a += 8, b += 8) {
      __m256 right[kCount];
#pragma GCC unroll 4  // early, or the sums are also written to the stack in every step
      for (int panel = 0; panel < kCount; ++panel) right[panel] = _mm256_loadu_ps(b + panel * panel_words);
#pragma GCC unroll 4
      for (int row = 0; row < 4; ++row) {
        const __m256 left = _mm256_broadcast_ss(a + row);
#pragma GCC unroll 4
        for (int panel = 0; panel < kCount; ++panel) {
          sum[row][panel] = _mm256_fmadd_ps(left, right[panel], sum[row][panel]);
        }
      }
    }
#pragma GCC unroll 4
    for (int row = 0; row < 4; ++row) {
#pragma GCC unroll 4
      for (int panel = 0; panel < kCount; ++panel) {
        float* target = tile + (row * kPanels + panel) * 8;
        _mm256_storeu_ps(target, _mm256_add_ps(_mm256_loadu_ps(target), sum[row][panel]));
      }
    }
  }
}

template <int kCount>
EASYEDIT_FAST_FOR_AVX512 inline __attribute__((always_inline)) void fold_avx512(const __m512 (&sum)[8][kCount],
                                                                                float* tile) {
#pragma GCC unroll 8
  for (int row = 0; row < 8; ++row) {
#pragma GCC unroll 4
    for (int panel = 0; panel < kCount; ++panel) {
      float* target = tile + (row * kPanels + panel) * 16;
      _mm512_storeu_ps(target, _mm512_add_ps(_mm512_loadu_ps(target), sum[row][panel]));
    }
  }
}

// 8 x 3 sums of 16 lanes, 3 vectors of b and one of a: 28 of 32 registers.
template <int kCount>
EASYEDIT_FAST_FOR_AVX512 void multiply_add_avx512(int64_t steps, const float* a, const float* b, int64_t panel_words,
                                                  float* tile) {
  for (int64_t first = 0; first < steps; first += kTermsPerSum) {
    __m512 sum[8][kCount] = {};
    for (int64_t step = std::min(kTermsPerSum, steps - first); step > 0; --step, a += 16, b += 16) {
      __m512 right[kCount];
#pragma GCC unroll 4
      for (int panel = 0; panel < kCount; ++panel) right[panel] = _mm512_loadu_ps(b + panel * panel_words);
#pragma GCC unroll 8
      for (int row = 0; row < 8; ++row) {
        const __m512 left = _mm512_set1_ps(a[row]);
#pragma GCC unroll 4
        for (int panel = 0; panel < kCount; ++panel) {
          sum[row][panel] = _mm512_fmadd_ps(left, right[panel], sum[row][panel]);
        }
      }
    }
    fold_avx512<kCount>(sum, tile);
  }
}

// The same with pairs.
template <int kCount>
EASYEDIT_FAST_FOR_AVX512_BF16 void multiply_add_avx512_bf16(int64_t steps, const std::uint32_t* a,
                                                            const std::uint32_t* b, int64_t panel_words, float* tile) {
  constexpr int64_t kStepsPerSum = kTermsPerSum / 2;
  for (int64_t first = 0; first < steps; first += kStepsPerSum) {
    __m512 sum[8][kCount] = {};
    for (int64_t step = std::min(kStepsPerSum, steps - first); step > 0; --step, a += 16, b += 16) {
      __m512bh right[kCount];
#pragma GCC unroll 4
      for (int panel = 0; panel < kCount; ++panel) {
        right[panel] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + panel * panel_words));
      }
#pragma GCC unroll 8
      for (int row = 0; row < 8; ++row) {
        const __m512bh left = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a[row])));
#pragma GCC unroll 4
        for (int panel = 0; panel < kCount; ++panel) {
          sum[row][panel] = _mm512_dpbf16_ps(sum[row][panel], left, right[panel]);
        }
      }
    }
    fold_avx512<kCount>(sum, tile);
  }
}

// Clears the tile and calls the kernel of so many panels.
template <class Word, int kElements, auto kOne, auto kTwo, auto kThree>
void by_panels(int64_t steps, const void* a, const void* b, int64_t panel_words, int panels, float* tile) {
  std::memset(tile, 0, sizeof(float) * kElements);
  const auto kernel = panels == 1 ? kOne : panels == 2 ? kTwo : kThree;
  kernel(steps, static_cast<const Word*>(a), static_cast<const Word*>(b), panel_words, tile);
}

// The state of the tile registers: 8 tiles of 16 rows of 64 bytes.
struct alignas(64) TileConfig {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// 2 x 2 sums of 16 x 16. One instruction sums 32 products before it adds them, so the tile is folded once.
EASYEDIT_FAST_FOR_AMX_BF16 void multiply_amx(int64_t steps, const void* a, const void* b, int64_t panel_words, int,
                                             float* tile) {
  const TileConfig config;
  // Compilers take the instruction below to read less of it than it does.
  __asm__ volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const char* left = static_cast<const char*>(a);
  const char* right = static_cast<const char*>(b);
  const int64_t panel_bytes = panel_words * 4;
  for (int64_t step = 0; step < steps; step += 16, left += 1024, right += 1024) {
    _tile_loadd(4, left, 64);
    _tile_loadd(5, left + panel_bytes, 64);
    _tile_loadd(6, right, 64);
    _tile_loadd(7, right + panel_bytes, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, tile, 128);
  _tile_stored(1, tile + 16, 128);
  _tile_stored(2, tile + 512, 128);
  _tile_stored(3, tile + 528, 128);
  _tile_release();
}

constexpr auto kMultiplyAvx2 =
    by_panels<float, 4 * 24, multiply_add_avx2<1>, multiply_add_avx2<2>, multiply_add_avx2<3>>;
constexpr auto kMultiplyAvx512 =
    by_panels<float, 8 * 48, multiply_add_avx512<1>, multiply_add_avx512<2>, multiply_add_avx512<3>>;
constexpr auto kMultiplyAvx512Bf16 = by_panels<std::uint32_t, 8 * 48, multiply_add_avx512_bf16<1>,
                                               multiply_add_avx512_bf16<2>, multiply_add_avx512_bf16<3>>;
constexpr TileKernel kAvx2{8, 4, 24, 1, 1, 256, false, kMultiplyAvx2};
constexpr TileKernel kAvx512{16, 8, 48, 1, 1, 256, false, kMultiplyAvx512};
constexpr TileKernel kAvx512Bf16{16, 8, 48, 2, 1, 256, false, kMultiplyAvx512Bf16};
constexpr TileKernel kAmxBf16{16, 32, 32, 2, 16, 512, true, multiply_amx};
#endif

}  // namespace

const TileKernel& float_kernel() {
#if EASYEDIT_FAST_HAS_X86
  if (cpu_path() >= CpuPath::kAvx512) return kAvx512;
  if (cpu_path() == CpuPath::kAvx2) return kAvx2;
#endif
  return kGeneric;
}

const TileKernel* bfloat16_kernel() {
#if EASYEDIT_FAST_HAS_X86
  if (cpu_path() == CpuPath::kAmxBf16) return &kAmxBf16;
  if (cpu_path() == CpuPath::kAvx512Bf16) return &kAvx512Bf16;
#endif
  return nullptr;
}

}  // namespace easyedit_fast
