#include "second_moment/second_moment.h"

#include <stdexcept>

#include "common/check.h"

namespace easyedit_fast {

void check(const SecondMoment& params) {
  require(params.rows >= 0 && params.columns >= 0, "second_moment_: x must be [n, d] with n, d >= 0");
  if (params.rows == 0 || params.columns == 0) return;
  require(params.out != nullptr && params.x != nullptr, "second_moment_: out [d, d] and x [n, d] must not be null");
  require(params.row_stride >= 0 && params.column_stride >= 0 && params.mask_stride >= 0,
          "second_moment_: strides of x [n, d] and mask [n] must not be negative");
}

void check(const Symmetrise& params) {
  require(params.size >= 0, "symmetrise_: out must be [d, d] with d >= 0");
  require(params.size == 0 || params.out != nullptr, "symmetrise_: out [d, d] must not be null");
}

#if !EASYEDIT_FAST_CUDA
void second_moment_cuda(const SecondMoment&, int, void*) {
  throw std::runtime_error("second_moment_: this build of easyedit-fast has no CUDA part");
}

void symmetrise_cuda(const Symmetrise&, int, void*) {
  throw std::runtime_error("symmetrise_: this build of easyedit-fast has no CUDA part");
}
#endif

}  // namespace easyedit_fast
