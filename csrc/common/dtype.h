// The element types of tensors, and the storage types that stand for them.
#pragma once

#include <cstdint>
#include <stdexcept>

namespace easyedit_fast {

// The numbers that easyedit_fast/kernels/native.py passes.
enum class Dtype : int { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2 };

struct Float16 {
  std::uint16_t bits;
};

struct Bfloat16 {
  std::uint16_t bits;
};

template <class T>
struct TypeTag {
  using Type = T;
};

// Calls body with the TypeTag of a dtype.
template <class Body>
auto dispatch(Dtype dtype, Body&& body) {
  switch (dtype) {
    case Dtype::kFloat32:
      return body(TypeTag<float>{});
    case Dtype::kFloat16:
      return body(TypeTag<Float16>{});
    case Dtype::kBfloat16:
      return body(TypeTag<Bfloat16>{});
  }
  throw std::invalid_argument("dtype must be 0 (float32), 1 (float16) or 2 (bfloat16)");
}

}  // namespace easyedit_fast
