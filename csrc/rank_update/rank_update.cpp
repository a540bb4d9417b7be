#include "rank_update/rank_update.h"

#include <stdexcept>

#include "common/check.h"

namespace easyedit_fast {
namespace {

bool has_contiguous_rows(const RankUpdate& params) {
  return (params.columns <= 1 || params.column_stride == 1) &&
         (params.rows <= 1 || params.row_stride >= params.columns);
}

StridedMatrix transposed(const StridedMatrix& matrix) { return {matrix.data, matrix.column_stride, matrix.row_stride}; }

RankUpdate transposed(const RankUpdate& params) {
  RankUpdate result = params;
  result.rows = params.columns;
  result.columns = params.rows;
  result.row_stride = params.column_stride;
  result.column_stride = params.row_stride;
  result.output_factor = transposed(params.input_factor);
  result.input_factor = transposed(params.output_factor);
  result.number_row_stride = params.number_column_stride;
  result.number_column_stride = params.number_row_stride;
  return result;
}

}  // namespace

void check(const RankUpdate& params) {
  require(params.rows >= 0 && params.columns >= 0 && params.rank >= 0,
          "rank_update_: weight [m, n], output_factor [m, k] and input_factor [k, n] need m, n, k >= 0");
  require(params.rounding == Rounding::kNearest || params.rounding == Rounding::kStochastic,
          "rank_update_: rounding must be 0 (nearest) or 1 (stochastic)");
  if (params.rows == 0 || params.columns == 0 || params.rank == 0) return;
  require(params.weight != nullptr && params.output_factor.data != nullptr && params.input_factor.data != nullptr,
          "rank_update_: weight [m, n], output_factor [m, k] and input_factor [k, n] must not be null");
  require(has_contiguous_rows(params) || has_contiguous_rows(transposed(params)),
          "rank_update_: weight [m, n] must have a stride of 1 along rows or columns and no overlap");
}

RankUpdate with_contiguous_rows(const RankUpdate& params) {
  return has_contiguous_rows(params) ? params : transposed(params);
}

#if !EASYEDIT_FAST_CUDA
void rank_update_cuda(const RankUpdate&, int*, int, void*) {
  throw std::runtime_error("rank_update_: this build of easyedit-fast has no CUDA part");
}
#endif

}  // namespace easyedit_fast
