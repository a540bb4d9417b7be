#include <cmath>
#include <cstdint>

#include "common/portable.cuh"
#include "common/tile.cuh"
#include "second_moment/second_moment.h"

namespace easyedit_fast {
namespace {

using std::int64_t;

struct TilePosition {
  int64_t row;
  int64_t column;
};

// Block number -> tile of the lower triangle, row by row: 0 -> (0, 0), 1 -> (1, 0), 2 -> (1, 1) ...
__device__ __forceinline__ TilePosition lower_tile(int64_t number) {
  int64_t row = static_cast<int64_t>((sqrt(8.0 * static_cast<double>(number) + 1.0) - 1.0) / 2.0);
  while (row * (row + 1) / 2 > number) --row;  // the root may be off by a rounding
  while ((row + 1) * (row + 2) / 2 <= number) ++row;
  return {row, number - row * (row + 1) / 2};
}

// chunk = rows [first_row, first_row + kChunk) and columns [first_column, first_column + kTile) of x.
template <class T>
__device__ __forceinline__ void load_chunk(const SecondMoment& params, int64_t first_row, int64_t first_column,
                                           float (&chunk)[kChunk][kTile]) {
  const T* x = static_cast<const T*>(params.x);
  for (int element = static_cast<int>(threadIdx.x); element < kChunk * kTile; element += kThreads) {
    const int64_t row = first_row + element / kTile;
    const int64_t column = first_column + element % kTile;
    float value = 0.0f;
    if (row < params.rows && column < params.columns &&
        (params.mask == nullptr || params.mask[row * params.mask_stride] != 0)) {
      value = to_float(x[row * params.row_stride + column * params.column_stride]);
    }
    chunk[element / kTile][element % kTile] = value;
  }
}

// One block: one 64 x 64 tile of out [d, d] += xᵀx, summed over all rows in a fixed order.
template <class T>
__global__ void __launch_bounds__(kThreads) second_moment_kernel(SecondMoment params) {
  EASYEDIT_FAST_SHARED(Chunks, shared);
  const TilePosition tile = lower_tile(static_cast<int64_t>(blockIdx.x));
  Sums total;
  multiply_tiles(params.rows, shared, total, [&](int64_t first, Chunks& chunks) {
    load_chunk<T>(params, first, tile.row * kTile, chunks.a);
    load_chunk<T>(params, first, tile.column * kTile, chunks.b);
  });
#pragma unroll
  for (int r = 0; r < kPerThread; ++r) {
#pragma unroll
    for (int c = 0; c < kPerThread; ++c) {
      const int64_t row = tile.row * kTile + row_of(r);
      const int64_t column = tile.column * kTile + column_of(c);
      if (row < params.columns && column <= row) params.out[row * params.columns + column] += total.value[r][c];
    }
  }
}

constexpr int kMirrorTile = 32;

struct MirrorTile {
  float value[kMirrorTile][kMirrorTile + 1];  // one more, so that columns do not share a bank
};

// One block: one 32 x 32 tile of the lower triangle, read by rows and written by rows of its mirror.
__global__ void __launch_bounds__(kThreads) symmetrise_kernel(Symmetrise params) {
  EASYEDIT_FAST_SHARED(MirrorTile, shared);
  const TilePosition tile = lower_tile(static_cast<int64_t>(blockIdx.x));
  for (int element = static_cast<int>(threadIdx.x); element < kMirrorTile * kMirrorTile; element += kThreads) {
    const int64_t row = tile.row * kMirrorTile + element / kMirrorTile;
    const int64_t column = tile.column * kMirrorTile + element % kMirrorTile;
    if (row < params.size && column < row) {
      shared.value[element / kMirrorTile][element % kMirrorTile] = params.out[row * params.size + column];
    }
  }
  __syncthreads();  // the tile is whole before its columns are read
  for (int element = static_cast<int>(threadIdx.x); element < kMirrorTile * kMirrorTile; element += kThreads) {
    const int64_t row = tile.column * kMirrorTile + element / kMirrorTile;
    const int64_t column = tile.row * kMirrorTile + element % kMirrorTile;
    if (column < params.size && row < column) {
      params.out[row * params.size + column] = shared.value[element % kMirrorTile][element / kMirrorTile];
    }
  }
}

int64_t lower_tiles(int64_t size, int64_t tile) {
  const int64_t tiles = (size + tile - 1) / tile;
  return tiles * (tiles + 1) / 2;
}

}  // namespace

void second_moment_cuda(const SecondMoment& params, int device, void* stream) {
  if (params.rows == 0 || params.columns == 0) return;
  const DeviceGuard guard(device);
  dispatch(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    launch("second_moment_", second_moment_kernel<T>, lower_tiles(params.columns, kTile), kThreads,
           static_cast<cudaStream_t>(stream), params);
  });
}

void symmetrise_cuda(const Symmetrise& params, int device, void* stream) {
  if (params.size == 0) return;
  const DeviceGuard guard(device);
  launch("symmetrise_", symmetrise_kernel, lower_tiles(params.size, kMirrorTile), kThreads,
         static_cast<cudaStream_t>(stream), params);
}

}  // namespace easyedit_fast
