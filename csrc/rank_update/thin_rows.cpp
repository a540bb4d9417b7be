#include "rank_update/thin_rows.h"

#include <algorithm>
#include <type_traits>

#include "common/cpu.h"
#include "common/numeric.h"

#if EASYEDIT_FAST_HAS_X86
#include <immintrin.h>
#endif

namespace easyedit_fast {
namespace {

using std::int64_t;

#if EASYEDIT_FAST_HAS_X86
#define EASYEDIT_FAST_AVX2 EASYEDIT_FAST_FOR_AVX2 inline __attribute__((always_inline))
#define EASYEDIT_FAST_AVX512 EASYEDIT_FAST_FOR_AVX512 inline __attribute__((always_inline))

// All lanes: the intrinsics without a mask make GCC 12 warn of what they leave uninitialised.
constexpr __mmask16 kAll = 0xffff;

EASYEDIT_FAST_AVX2 __m256 load8(const float* source) { return _mm256_loadu_ps(source); }

EASYEDIT_FAST_AVX2 __m256 load8(const Bfloat16* source) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

EASYEDIT_FAST_AVX512 __m512 load16(const float* source) { return _mm512_loadu_ps(source); }

EASYEDIT_FAST_AVX512 __m512 load16(const Bfloat16* source) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(source));
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(kAll, _mm512_maskz_cvtepu16_epi32(kAll, bits), 16));
}

// Rounded to the nearest T, ties to even; a NaN may become infinite.
EASYEDIT_FAST_AVX2 __m256 rounded(__m256 value, const float*) { return value; }

EASYEDIT_FAST_AVX2 __m256 rounded(__m256 value, const Bfloat16*) {
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  return _mm256_castsi256_ps(_mm256_and_si256(sum, _mm256_set1_epi32(~0xffff)));
}

EASYEDIT_FAST_AVX512 __m512 rounded(__m512 value, const float*) { return value; }

EASYEDIT_FAST_AVX512 __m512 rounded(__m512 value, const Bfloat16*) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_maskz_srli_epi32(kAll, bits, 16), _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  return _mm512_castsi512_ps(_mm512_and_si512(sum, _mm512_set1_epi32(~0xffff)));
}

EASYEDIT_FAST_AVX2 void store8(float* target, __m256 value) { _mm256_storeu_ps(target, value); }

EASYEDIT_FAST_AVX2 void store8(Bfloat16* target, __m256 value) {
  const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(value), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(target), _mm256_castsi256_si128(packed));
}

EASYEDIT_FAST_AVX512 void store16(float* target, __m512 value) { _mm512_storeu_ps(target, value); }

EASYEDIT_FAST_AVX512 void store16(Bfloat16* target, __m512 value) {
  const __m512i high = _mm512_maskz_srli_epi32(kAll, _mm512_castps_si512(value), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), _mm512_maskz_cvtepi32_epi16(kAll, high));
}

// Whole vectors of kThinRows rows, side by side from where `weights` point. What is finite leaves the
// zeros as they are, all else turns them to NaN.
template <class T, bool kWrite>
EASYEDIT_FAST_FOR_AVX2 bool update_strips_avx2(const float* left, const float* right, int64_t rank, T* const* weights,
                                               int64_t strips) {
  __m256 zero = _mm256_setzero_ps();
  for (int64_t offset = 0; offset < strips * 8; offset += 8) {
    __m256 sum[kThinRows] = {};
    const float* factor = left;
    for (int64_t k = 0; k < rank; ++k, factor += kThinRows, right += 8) {
      const __m256 column = _mm256_loadu_ps(right);
#pragma GCC unroll 4
      for (int64_t r = 0; r < kThinRows; ++r) sum[r] = _mm256_fmadd_ps(_mm256_broadcast_ss(factor + r), column, sum[r]);
    }
#pragma GCC unroll 4
    for (int64_t r = 0; r < kThinRows; ++r) {
      T* weight = weights[r] + offset;
      const __m256 before = _mm256_add_ps(load8(weight), sum[r]);
      const __m256 value = rounded(before, weight);
      zero = _mm256_fmadd_ps(value, _mm256_setzero_ps(), zero);
      if (!std::is_same_v<T, float>) zero = _mm256_fmadd_ps(before, _mm256_setzero_ps(), zero);
      if (kWrite) store8(weight, value);
    }
  }
  alignas(64) float zeros[8];
  _mm256_store_ps(zeros, zero);
  return std::all_of(zeros, zeros + 8, [](float value) { return value == 0.0f; });
}

template <class T, bool kWrite>
EASYEDIT_FAST_FOR_AVX512 bool update_strips_avx512(const float* left, const float* right, int64_t rank,
                                                   T* const* weights, int64_t strips) {
  __m512 zero = _mm512_setzero_ps();
  for (int64_t offset = 0; offset < strips * 16; offset += 16) {
    __m512 sum[kThinRows] = {};
    const float* factor = left;
    for (int64_t k = 0; k < rank; ++k, factor += kThinRows, right += 16) {
      const __m512 column = _mm512_loadu_ps(right);
#pragma GCC unroll 4
      for (int64_t r = 0; r < kThinRows; ++r) sum[r] = _mm512_fmadd_ps(_mm512_set1_ps(factor[r]), column, sum[r]);
    }
#pragma GCC unroll 4
    for (int64_t r = 0; r < kThinRows; ++r) {
      T* weight = weights[r] + offset;
      const __m512 before = _mm512_add_ps(load16(weight), sum[r]);
      const __m512 value = rounded(before, weight);
      zero = _mm512_fmadd_ps(value, _mm512_setzero_ps(), zero);
      if (!std::is_same_v<T, float>) zero = _mm512_fmadd_ps(before, _mm512_setzero_ps(), zero);
      if (kWrite) store16(weight, value);
    }
  }
  alignas(64) float zeros[16];
  _mm512_store_ps(zeros, zero);
  return std::all_of(zeros, zeros + 16, [](float value) { return value == 0.0f; });
}

template <class T>
T* place(const RankUpdate& params, int64_t row, int64_t column) {
  return static_cast<T*>(params.weight) + row * params.row_stride + column;
}

// A copy of what is left at the end of rows or columns, wide enough for the vectors.
template <class T>
struct Edge {
  Edge(const RankUpdate& given, int64_t row, int64_t row_count, int64_t column, int64_t lanes)
      : params(given), first_row(row), rows(row_count), first_column(column) {
    columns = std::min(lanes, params.columns - column);
    for (int64_t r = 0; r < rows; ++r) std::copy_n(place<T>(params, row + r, column), columns, buffer[r]);
  }

  void write() const {
    for (int64_t r = 0; r < rows; ++r) std::copy_n(buffer[r], columns, place<T>(params, first_row + r, first_column));
  }

  const RankUpdate& params;
  int64_t first_row, rows, first_column, columns;
  T buffer[kThinRows][16] = {};
  T* const weights[kThinRows] = {buffer[0], buffer[1], buffer[2], buffer[3]};
};

template <class T>
using UpdateStrips = bool (*)(const float*, const float*, int64_t, T* const*, int64_t);

template <class T, bool kWrite>
struct Avx2 {
  static constexpr int64_t kLanes = 8;
  static constexpr UpdateStrips<T> kUpdate = update_strips_avx2<T, kWrite>;
};

template <class T, bool kWrite>
struct Avx512 {
  static constexpr int64_t kLanes = 16;
  static constexpr UpdateStrips<T> kUpdate = update_strips_avx512<T, kWrite>;
};

template <class T, class Isa, bool kWrite>
bool update_rows(const RankUpdate& params, const float* left, const float* right, int64_t first, int64_t last) {
  bool finite = true;
  for (int64_t row = first; row < last; row += kThinRows) {
    const int64_t rows = std::min(kThinRows, last - row);
    const float* factor = left + row * params.rank;
    int64_t column = 0;
    if (rows == kThinRows) {
      T* const weights[kThinRows] = {place<T>(params, row, 0), place<T>(params, row + 1, 0),
                                     place<T>(params, row + 2, 0), place<T>(params, row + 3, 0)};
      finite &= Isa::kUpdate(factor, right, params.rank, weights, params.columns / Isa::kLanes);
      column = params.columns / Isa::kLanes * Isa::kLanes;
    }
    for (; column < params.columns; column += Isa::kLanes) {
      Edge<T> edge(params, row, rows, column, Isa::kLanes);
      finite &= Isa::kUpdate(factor, right + column * params.rank, params.rank, edge.weights, 1);
      if (kWrite) edge.write();
    }
  }
  return finite;
}

template <class T, template <class, bool> class Isa>
bool update(const RankUpdate& params, const float* left, const float* right, int64_t first, int64_t last, bool write) {
  return write ? update_rows<T, Isa<T, true>, true>(params, left, right, first, last)
               : update_rows<T, Isa<T, false>, false>(params, left, right, first, last);
}

template <class T>
ThinRows on_path() {
  if (cpu_path() >= CpuPath::kAvx512) return {16, update<T, Avx512>};
  if (cpu_path() == CpuPath::kAvx2) return {8, update<T, Avx2>};
  return {0, nullptr};
}
#endif

// Up to this rank the product takes less time than the weight takes to stream by.
constexpr int64_t kMaxRank = 16;

}  // namespace

ThinRows thin_rows(const RankUpdate& params) {
#if EASYEDIT_FAST_HAS_X86
  if (params.rank <= kMaxRank && params.rounding == Rounding::kNearest) {
    if (params.dtype == Dtype::kFloat32) return on_path<float>();
    if (params.dtype == Dtype::kBfloat16) return on_path<Bfloat16>();
  }
#endif
  return {0, nullptr};
}

}  // namespace easyedit_fast
