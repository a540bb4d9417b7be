// rank_update_: weight += output_factor · input_factor, float32 sums, rounded once; refused where a
// result would not be finite.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace easyedit_fast {

// The numbers that easyedit_fast/kernels/native.py passes.
enum class Rounding : int { kNearest = 0, kStochastic = 1 };

// A matrix of float32 seen through strides (in elements).
struct StridedMatrix {
  const float* data;
  std::int64_t row_stride;
  std::int64_t column_stride;
};

struct RankUpdate {
  void* weight;                 // [rows, columns]
  std::int64_t rows;            // m
  std::int64_t columns;         // n
  std::int64_t row_stride;      // of weight, in elements
  std::int64_t column_stride;   // of weight, in elements
  Dtype dtype;                  // of weight
  StridedMatrix output_factor;  // [rows, rank]
  StridedMatrix input_factor;   // [rank, columns]
  std::int64_t rank;            // k
  Rounding rounding;
  std::uint64_t seed;
  std::int64_t number_row_stride;     // element (i, j) draws the noise of number
  std::int64_t number_column_stride;  // i * number_row_stride + j * number_column_stride
};

// Throws std::invalid_argument that names the expected shape.
void check(const RankUpdate& params);

// The same update with weight seen as a matrix of contiguous rows: as it is, or transposed.
RankUpdate with_contiguous_rows(const RankUpdate& params);

// False where a result would not be finite. With check_first, weight is then as it was; without, which
// spares a pass over it, it holds what came out.
bool rank_update_cpu(const RankUpdate& params, bool check_first, int threads);

// Sets *status (device memory, 0 before) to 1 where a result would not be finite; weight is then as
// it was. Throws std::runtime_error where a launch fails or the build has no CUDA part.
void rank_update_cuda(const RankUpdate& params, int* status, int device, void* stream);

}  // namespace easyedit_fast
