// The matrix product of one small tile on the CPU, chosen by what the processor has.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace easyedit_fast {

// Instruction sets, in rising order. A new one needs a name and a test in cpu.cpp, a row of
// micro_kernel() and, where compilers gain from it, a target of EASYEDIT_FAST_FOR_AVX2's kind.
enum class CpuPath { kGeneric, kAvx2 };

CpuPath cpu_path();
std::string cpu_path_name();

// The paths that this processor has, and the choice of one, by which tests reach those below the best.
std::vector<std::string> cpu_paths();
void use_cpu_path(const std::string& name);

std::vector<std::string> cpu_features();

// tile [rows, columns] += aᵀ b for a [depth, rows] (row stride a_stride) and b [depth, columns]
// (row stride columns). columns is a multiple of rows.
struct MicroKernel {
  int rows;
  int columns;
  void (*multiply_add)(std::int64_t depth, const float* a, std::int64_t a_stride, const float* b, float* tile);
};

const MicroKernel& micro_kernel();

// Bounds of every MicroKernel, for buffers on the stack.
constexpr int kMaxTileRows = 4;
constexpr int kMaxTileColumns = 24;

// A float32 sum runs over so many products before it is folded into the sum of such sums. Rounding
// errors then grow with the number of folds, not of products.
constexpr std::int64_t kTermsPerSum = 32;

// tile [rows, columns] = aᵀ b, as in MicroKernel, summed in folds.
void multiply_tile(const MicroKernel& kernel, std::int64_t depth, const float* a, std::int64_t a_stride, const float* b,
                   float* tile);

// Threads that are worth waking for so many multiply-adds or moved elements.
inline int useful_threads(double work, int threads) { return work < 65536.0 || threads < 1 ? 1 : threads; }

// Compiles a function for AVX2; plain loops inlined into it are vectorised accordingly.
#if defined(__x86_64__)
#define EASYEDIT_FAST_HAS_AVX2 1
#define EASYEDIT_FAST_FOR_AVX2 __attribute__((target("avx2,fma")))
#else
#define EASYEDIT_FAST_HAS_AVX2 0
#endif

}  // namespace easyedit_fast
