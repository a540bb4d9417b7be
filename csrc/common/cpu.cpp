#include "common/cpu.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iterator>
#include <stdexcept>

#if EASYEDIT_FAST_HAS_AVX2
#include <immintrin.h>
#endif

namespace easyedit_fast {
namespace {

constexpr int kRows = 4;
constexpr int kColumns = 24;

void multiply_add_generic(std::int64_t depth, const float* a, std::int64_t a_stride, const float* b, float* tile) {
  float sum[kRows][kColumns] = {};
  for (std::int64_t k = 0; k < depth; ++k, a += a_stride, b += kColumns) {
    for (int row = 0; row < kRows; ++row) {
      for (int column = 0; column < kColumns; ++column) sum[row][column] += a[row] * b[column];
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int column = 0; column < kColumns; ++column) tile[row * kColumns + column] += sum[row][column];
  }
}

#if EASYEDIT_FAST_HAS_AVX2
// 4 x 3 sums of 8 lanes, 3 vectors of b and one of a: all 16 registers.
EASYEDIT_FAST_FOR_AVX2
void multiply_add_avx2(std::int64_t depth, const float* a, std::int64_t a_stride, const float* b, float* tile) {
  __m256 sum[kRows][3] = {};
  for (std::int64_t k = 0; k < depth; ++k, a += a_stride, b += kColumns) {
    const __m256 b0 = _mm256_loadu_ps(b);
    const __m256 b1 = _mm256_loadu_ps(b + 8);
    const __m256 b2 = _mm256_loadu_ps(b + 16);
#pragma GCC unroll 4  // early, or the sums are also written to the stack in every step
    for (int row = 0; row < kRows; ++row) {
      const __m256 a_row = _mm256_broadcast_ss(a + row);
      sum[row][0] = _mm256_fmadd_ps(a_row, b0, sum[row][0]);
      sum[row][1] = _mm256_fmadd_ps(a_row, b1, sum[row][1]);
      sum[row][2] = _mm256_fmadd_ps(a_row, b2, sum[row][2]);
    }
  }
#pragma GCC unroll 4
  for (int row = 0; row < kRows; ++row, tile += kColumns) {
    _mm256_storeu_ps(tile, _mm256_add_ps(_mm256_loadu_ps(tile), sum[row][0]));
    _mm256_storeu_ps(tile + 8, _mm256_add_ps(_mm256_loadu_ps(tile + 8), sum[row][1]));
    _mm256_storeu_ps(tile + 16, _mm256_add_ps(_mm256_loadu_ps(tile + 16), sum[row][2]));
  }
}
#endif

static_assert(kRows <= kMaxTileRows && kColumns <= kMaxTileColumns);

constexpr MicroKernel kGenericKernel{kRows, kColumns, multiply_add_generic};
#if EASYEDIT_FAST_HAS_AVX2
constexpr MicroKernel kAvx2Kernel{kRows, kColumns, multiply_add_avx2};
#endif

constexpr const char* kPathNames[] = {"generic", "avx2"};
static_assert(std::size(kPathNames) == static_cast<std::size_t>(CpuPath::kAvx2) + 1);

CpuPath best_path() {
#if EASYEDIT_FAST_HAS_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return CpuPath::kAvx2;
#endif
  return CpuPath::kGeneric;
}

std::atomic<CpuPath>& chosen_path() {
  static std::atomic<CpuPath> path{best_path()};
  return path;
}

}  // namespace

CpuPath cpu_path() { return chosen_path().load(std::memory_order_relaxed); }

std::vector<std::string> cpu_paths() {
  std::vector<std::string> names;
  for (int path = 0; path <= static_cast<int>(best_path()); ++path) names.emplace_back(kPathNames[path]);
  return names;
}

std::string cpu_path_name() { return kPathNames[static_cast<int>(cpu_path())]; }

void use_cpu_path(const std::string& name) {
  const std::vector<std::string> names = cpu_paths();
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) throw std::invalid_argument("this processor has no path '" + name + "'");
  chosen_path().store(static_cast<CpuPath>(found - names.begin()), std::memory_order_relaxed);
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> features;
#if EASYEDIT_FAST_HAS_AVX2
  if (__builtin_cpu_supports("avx2")) features.emplace_back("avx2");
  if (__builtin_cpu_supports("fma")) features.emplace_back("fma");
  if (__builtin_cpu_supports("avx512f")) features.emplace_back("avx512f");
  if (__builtin_cpu_supports("avx512bf16")) features.emplace_back("avx512bf16");
#endif
  return features;
}

void multiply_tile(const MicroKernel& kernel, std::int64_t depth, const float* a, std::int64_t a_stride, const float* b,
                   float* tile) {
  std::memset(tile, 0, sizeof(float) * static_cast<std::size_t>(kernel.rows * kernel.columns));
  for (std::int64_t k = 0; k < depth; k += kTermsPerSum) {
    kernel.multiply_add(std::min(kTermsPerSum, depth - k), a + k * a_stride, a_stride, b + k * kernel.columns, tile);
  }
}

const MicroKernel& micro_kernel() {
#if EASYEDIT_FAST_HAS_AVX2
  if (cpu_path() == CpuPath::kAvx2) return kAvx2Kernel;
#endif
  return kGenericKernel;
}

}  // namespace easyedit_fast
