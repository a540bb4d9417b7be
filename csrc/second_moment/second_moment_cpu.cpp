#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "common/cpu.h"
#include "common/numeric.h"
#include "second_moment/second_moment.h"

namespace easyedit_fast {
namespace {

using std::int64_t;

// Rows of x that are packed and multiplied at a time: two panels of them fit the first cache.
constexpr int64_t kRowsPerBlock = 256;

// Numbers of the rows to count.
std::vector<int64_t> counted_rows(const SecondMoment& params) {
  std::vector<int64_t> rows;
  rows.reserve(static_cast<std::size_t>(params.rows));
  for (int64_t row = 0; row < params.rows; ++row) {
    if (params.mask == nullptr || params.mask[row * params.mask_stride] != 0) rows.push_back(row);
  }
  return rows;
}

// Packs columns [first, first + count) of some rows as float32 [depth, width], padded with zeros.
template <class T>
EASYEDIT_FAST_INLINE void pack_panel(const SecondMoment& params, const int64_t* rows, int64_t depth, int64_t first,
                                     int64_t count, int64_t width, float* panel) {
  for (int64_t k = 0; k < depth; ++k, panel += width) {
    const T* source = static_cast<const T*>(params.x) + rows[k] * params.row_stride + first * params.column_stride;
    if (params.column_stride == 1) {
      for (int64_t column = 0; column < count; ++column) panel[column] = to_float(source[column]);
    } else {
      for (int64_t column = 0; column < count; ++column)
        panel[column] = to_float(source[column * params.column_stride]);
    }
    std::fill(panel + count, panel + width, 0.0f);
  }
}

using PackPanel = void (*)(const SecondMoment&, const int64_t*, int64_t, int64_t, int64_t, int64_t, float*);

template <class T>
void pack_panel_generic(const SecondMoment& params, const int64_t* rows, int64_t depth, int64_t first, int64_t count,
                        int64_t width, float* panel) {
  pack_panel<T>(params, rows, depth, first, count, width, panel);
}

#if EASYEDIT_FAST_HAS_AVX2
template <class T>
EASYEDIT_FAST_FOR_AVX2 void pack_panel_avx2(const SecondMoment& params, const int64_t* rows, int64_t depth,
                                            int64_t first, int64_t count, int64_t width, float* panel) {
  pack_panel<T>(params, rows, depth, first, count, width, panel);
}
#endif

PackPanel choose_pack_panel(Dtype dtype) {
  return dispatch(dtype, [](auto tag) -> PackPanel {
    using T = typename decltype(tag)::Type;
#if EASYEDIT_FAST_HAS_AVX2
    if (cpu_path() == CpuPath::kAvx2) return pack_panel_avx2<T>;
#endif
    return pack_panel_generic<T>;
  });
}

// Adds aᵀ b of two packed panels to the part of out [d, d] that lies in the lower triangle.
void add_panel_product(const MicroKernel& kernel, int64_t depth, const float* a, int64_t first_row, const float* b,
                       int64_t first_column, float* out, int64_t size) {
  const int64_t last_row = std::min<int64_t>(first_row + kernel.columns, size);
  for (int64_t row = first_row; row < last_row; row += kernel.rows) {
    float tile[kMaxTileRows * kMaxTileColumns];
    multiply_tile(kernel, depth, a + (row - first_row), kernel.columns, b, tile);
    const int64_t rows = std::min<int64_t>(kernel.rows, last_row - row);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t columns = std::min<int64_t>(kernel.columns, row + r + 1 - first_column);
      float* target = out + (row + r) * size + first_column;
      for (int64_t c = 0; c < columns; ++c) target[c] += tile[r * kernel.columns + c];
    }
  }
}

void add_block(const SecondMoment& params, PackPanel pack, const int64_t* rows, int64_t depth, float* packed,
               int threads) {
  const MicroKernel& kernel = micro_kernel();
  const int64_t width = kernel.columns;
  const int64_t panels = (params.columns + width - 1) / width;
  const int64_t panel_size = depth * width;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t first = panel * width;
      pack(params, rows, depth, first, std::min(width, params.columns - first), width, packed + panel * panel_size);
    }
    // One thread owns a column of tiles, so the order of every sum is fixed.
#pragma omp for schedule(dynamic)
    for (int64_t column = 0; column < panels; ++column) {
      for (int64_t row = column; row < panels; ++row) {
        add_panel_product(kernel, depth, packed + row * panel_size, row * width, packed + column * panel_size,
                          column * width, params.out, params.columns);
      }
    }
  }
}

}  // namespace

void second_moment_cpu(const SecondMoment& params, int threads) {
  const std::vector<int64_t> rows = counted_rows(params);
  if (rows.empty() || params.columns == 0) return;
  const int64_t count = static_cast<int64_t>(rows.size());
  const int64_t width = micro_kernel().columns;
  const int64_t padded = (params.columns + width - 1) / width * width;
  const std::unique_ptr<float[]> packed(new float[static_cast<std::size_t>(padded * std::min(count, kRowsPerBlock))]);
  const PackPanel pack = choose_pack_panel(params.dtype);
  const double work = static_cast<double>(count) * static_cast<double>(padded) * static_cast<double>(padded);
  const int useful = useful_threads(work, threads);
  for (int64_t first = 0; first < count; first += kRowsPerBlock) {
    add_block(params, pack, rows.data() + first, std::min(kRowsPerBlock, count - first), packed.get(), useful);
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
