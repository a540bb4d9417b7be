// The product of one tile of a matrix on the CPU, chosen by what the processor has.
//
// Operands are packed in panels. A panel holds `lanes` columns of a matrix, step by step of its rows:
// words [steps, lanes] of 4 bytes, one float32 or the bfloat16 pair of rows 2 s (low half) and 2 s + 1.
#pragma once

#include <cstdint>

namespace easyedit_fast {

// tile [rows, columns] = aᵀ b, where b is the first panel of the tile's columns; `panel_words` lie
// between panels, and panels <= columns / lanes of them are wanted. a is the place of the tile's first
// row in its panel: rows divides lanes. With `transposed_left`, a tile has the rows of whole panels
// and a comes from panels whose blocks of 16 steps are transposed.
struct TileKernel {
  int lanes;
  int rows;
  int columns;
  int terms_per_step;            // 1: float32, 2: bfloat16
  int steps_multiple;            // steps must be a multiple of it
  std::int64_t steps_per_block;  // between two additions to the result: a tile's panels stay in a near cache
  bool transposed_left;
  void (*multiply)(std::int64_t steps, const void* a, const void* b, std::int64_t panel_words, int panels, float* tile);
};

// The best kernel for float32, and for bfloat16 where there is one, on the path in use; else null.
const TileKernel& float_kernel();
const TileKernel* bfloat16_kernel();

// Bounds of every TileKernel, for buffers on the stack.
constexpr int kMaxTileElements = 32 * 32;
constexpr int kMaxLanes = 16;
constexpr std::int64_t kMaxTermsPerBlock = 1024;

// A float32 sum runs over so many products before it is folded into the sum of such sums. Rounding
// errors then grow with the number of folds, not of products.
constexpr std::int64_t kTermsPerSum = 64;

}  // namespace easyedit_fast
