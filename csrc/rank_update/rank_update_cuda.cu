#include <cstdint>

#include "common/portable.cuh"
#include "common/tile.cuh"
#include "rank_update/rank_update.h"

namespace easyedit_fast {
namespace {

using std::int64_t;

enum class Pass { kCheck, kWrite };

// chunk[k][i] = factor(first_k + k, first + i) of a factor seen as [rank, length], zero outside.
__device__ __forceinline__ void load_chunk(const StridedMatrix& factor, int64_t rank, int64_t length, int64_t first_k,
                                           int64_t first, float (&chunk)[kChunk][kTile]) {
  for (int element = static_cast<int>(threadIdx.x); element < kChunk * kTile; element += kThreads) {
    const int64_t k = first_k + element / kTile;
    const int64_t i = first + element % kTile;
    float value = 0.0f;
    if (k < rank && i < length) value = factor.data[k * factor.row_stride + i * factor.column_stride];
    chunk[element / kTile][element % kTile] = value;
  }
}

template <class T>
__device__ __forceinline__ T rounded(const RankUpdate& params, float value, int64_t row, int64_t column) {
  if (params.rounding == Rounding::kNearest) return round_nearest<T>(value);
  const int64_t number = row * params.number_row_stride + column * params.number_column_stride;
  return round_stochastic<T>(value, random_word(static_cast<std::uint64_t>(number), params.seed));
}

// One block: one 64 x 64 tile of weight [rows, columns], rows contiguous. The check pass sets *status
// where a result would not be finite; the write pass, later on the same stream, then does nothing.
template <class T, Pass kPass>
__global__ void __launch_bounds__(kThreads) rank_update_kernel(RankUpdate params, int* status) {
  EASYEDIT_FAST_SHARED(Chunks, shared);
  if (kPass == Pass::kWrite && *status != 0) return;
  const int64_t tile_columns = (params.columns + kTile - 1) / kTile;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) / tile_columns * kTile;
  const int64_t first_column = static_cast<int64_t>(blockIdx.x) % tile_columns * kTile;
  const StridedMatrix& factor = params.output_factor;
  const StridedMatrix left{factor.data, factor.column_stride, factor.row_stride};  // [rank, rows]
  Sums total;
  multiply_tiles(params.rank, shared, total, [&](int64_t first, Chunks& chunks) {
    load_chunk(left, params.rank, params.rows, first, first_row, chunks.a);
    load_chunk(params.input_factor, params.rank, params.columns, first, first_column, chunks.b);
  });
  T* weight = static_cast<T*>(params.weight);
#pragma unroll
  for (int r = 0; r < kPerThread; ++r) {
#pragma unroll
    for (int c = 0; c < kPerThread; ++c) {
      const int64_t row = first_row + row_of(r);
      const int64_t column = first_column + column_of(c);
      if (row >= params.rows || column >= params.columns) continue;
      T* element = weight + row * params.row_stride + column;
      const T result = rounded<T>(params, to_float(*element) + total.value[r][c], row, column);
      if (kPass == Pass::kWrite) {
        *element = result;
      } else if (!is_finite(result)) {
        *status = 1;
      }
    }
  }
}

}  // namespace

void rank_update_cuda(const RankUpdate& given, int* status, int device, void* stream) {
  const RankUpdate params = with_contiguous_rows(given);
  if (params.rows == 0 || params.columns == 0 || params.rank == 0) return;
  const DeviceGuard guard(device);
  const int64_t blocks = ((params.rows + kTile - 1) / kTile) * ((params.columns + kTile - 1) / kTile);
  dispatch(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const auto queue = static_cast<cudaStream_t>(stream);
    launch("rank_update_", rank_update_kernel<T, Pass::kCheck>, blocks, kThreads, queue, params, status);
    launch("rank_update_", rank_update_kernel<T, Pass::kWrite>, blocks, kThreads, queue, params, status);
  });
}

}  // namespace easyedit_fast
