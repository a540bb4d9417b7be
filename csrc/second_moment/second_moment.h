// second_moment_: out += xᵀx over unmasked rows, lower triangle only, float32 sums.
// symmetrise_: copies the lower triangle onto the upper one.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace easyedit_fast {

struct SecondMoment {
  float* out;                  // [columns, columns], contiguous
  const void* x;               // [rows, columns]
  std::int64_t rows;           // n
  std::int64_t columns;        // d
  std::int64_t row_stride;     // in elements
  std::int64_t column_stride;  // in elements
  Dtype dtype;                 // of x
  const unsigned char* mask;   // [rows], nonzero = count the row; null = count all
  std::int64_t mask_stride;    // in elements
};

struct Symmetrise {
  float* out;         // [size, size], contiguous
  std::int64_t size;  // d
};

// Throw std::invalid_argument that names the expected shape.
void check(const SecondMoment& params);
void check(const Symmetrise& params);

void second_moment_cpu(const SecondMoment& params, int threads);
void symmetrise_cpu(const Symmetrise& params, int threads);

// Throw std::runtime_error where a launch fails or the build has no CUDA part.
void second_moment_cuda(const SecondMoment& params, int device, void* stream);
void symmetrise_cuda(const Symmetrise& params, int device, void* stream);

}  // namespace easyedit_fast
