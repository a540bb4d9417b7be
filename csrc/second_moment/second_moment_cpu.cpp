#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "common/cpu.h"
#include "common/numeric.h"
#include "common/tile_kernel.h"
#include "second_moment/panels.h"
#include "second_moment/second_moment.h"

namespace easyedit_fast {
namespace {

using std::int64_t;

// What a task takes of out. The panels of its columns stay in the second cache; both are multiples of
// every tile's rows and columns.
constexpr int64_t kColumnsPerTask = 384;
constexpr int64_t kRowsPerTask = 96;

// Numbers of the rows to count.
std::vector<int64_t> counted_rows(const SecondMoment& params) {
  std::vector<int64_t> rows;
  rows.reserve(static_cast<std::size_t>(params.rows));
  for (int64_t row = 0; row < params.rows; ++row) {
    if (params.mask == nullptr || params.mask[row * params.mask_stride] != 0) rows.push_back(row);
  }
  return rows;
}

// Adds a tile to rows [row, row + rows) of out [size, size] from a column on, up to the diagonal.
struct AddTile {
  static EASYEDIT_FAST_INLINE void run(const float* tile, int64_t tile_columns, int64_t row, int64_t rows,
                                       int64_t column, float* out, int64_t size) {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t columns = std::min(tile_columns, row + r + 1 - column);
      float* target = out + (row + r) * size + column;
      for (int64_t c = 0; c < columns; ++c) target[c] += tile[r * tile_columns + c];
    }
  }
};

// Asks for a tile of out early: it arrives while the products are counted.
void fetch_tile(const float* out, int64_t rows, int64_t columns, int64_t size) {
  constexpr int64_t kFloatsPerLine = 16;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; column += kFloatsPerLine) {
      __builtin_prefetch(out + row * size + column, 1);
    }
    __builtin_prefetch(out + row * size + columns - 1, 1);
  }
}

// A rectangle of out that reaches into the lower triangle.
struct Part {
  int64_t row, last_row;
  int64_t column, last_column;
};

std::vector<Part> parts_of(int64_t size) {
  std::vector<Part> parts;
  for (int64_t column = 0; column < size; column += kColumnsPerTask) {
    for (int64_t row = column; row < size; row += kRowsPerTask) {
      parts.push_back({row, std::min(size, row + kRowsPerTask), column, std::min(size, column + kColumnsPerTask)});
    }
  }
  return parts;
}

void add_block(const Panels& panels, int64_t block, const Part& part, float* out, int64_t size) {
  const TileKernel& kernel = panels.kernel();
  const auto add_tile = compiled<AddTile>();
  alignas(64) float tile[kMaxTileElements];
  for (int64_t row = part.row; row < part.last_row; row += kernel.rows) {
    const int64_t rows = std::min<int64_t>(kernel.rows, part.last_row - row);
    const int64_t stop = std::min(part.last_column, row + rows);
    for (int64_t column = part.column; column < stop; column += kernel.columns) {
      const int64_t columns = std::min<int64_t>(stop - column, kernel.columns);
      const int count = static_cast<int>((columns + kernel.lanes - 1) / kernel.lanes);
      fetch_tile(out + row * size + column, rows, columns, size);
      kernel.multiply(panels.steps(block), panels.left(block, row), panels.right(block, column),
                      panels.panel_words(block), count, tile);
      add_tile(tile, kernel.columns, row, rows, column, out, size);
    }
  }
}

void add_group(const Panels& panels, float* out, int64_t size, int threads) {
  const std::vector<Part> parts = parts_of(size);
  // One thread owns a part, so the order of every sum is fixed.
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (const Part& part : parts) {
    for (int64_t block = 0; block < panels.blocks(); ++block) add_block(panels, block, part, out, size);
  }
}

}  // namespace

void second_moment_cpu(const SecondMoment& params, int threads) {
  const std::vector<int64_t> rows = counted_rows(params);
  if (rows.empty() || params.columns == 0) return;
  const int64_t count = static_cast<int64_t>(rows.size());
  const double columns = static_cast<double>(params.columns);
  const int useful = useful_threads(static_cast<double>(count) * columns * columns, threads);
  const TileKernel* fast = params.dtype == Dtype::kBfloat16 ? bfloat16_kernel() : nullptr;
  Panels panels(params, count);
  for (int64_t first = 0; first < count; first += panels.rows_per_group()) {
    const int64_t group = std::min(panels.rows_per_group(), count - first);
    if (fast == nullptr || !panels.pack(*fast, rows.data() + first, group, useful)) {
      panels.pack(float_kernel(), rows.data() + first, group, useful);
    }
    add_group(panels, params.out, params.columns, useful);
  }
}

void symmetrise_cpu(const Symmetrise& params, int threads) {
  constexpr int64_t kTile = 32;
  const int64_t size = params.size;
  const int64_t tiles = (size + kTile - 1) / kTile;
  const int useful = useful_threads(static_cast<double>(size) * static_cast<double>(size), threads);
#pragma omp parallel for schedule(dynamic) num_threads(useful)
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t last_row = std::min(size, (tile + 1) * kTile);
    for (int64_t first = tile * kTile; first < size; first += kTile) {
      const int64_t last_column = std::min(size, first + kTile);
      for (int64_t row = tile * kTile; row < last_row; ++row) {
        for (int64_t column = std::max(first, row + 1); column < last_column; ++column) {
          params.out[row * size + column] = params.out[column * size + row];
        }
      }
    }
  }
}

}  // namespace easyedit_fast
