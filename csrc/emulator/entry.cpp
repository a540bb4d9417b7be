// C functions through which the tests reach the emulated kernels (tests/kernels/emulation.py).
#include <cstdint>
#include <exception>
#include <string>

#include "emulator/cuda_emulator.h"
#include "rank_update/rank_update.h"
#include "second_moment/second_moment.h"

namespace {

using namespace easyedit_fast;

std::string last_error;

// 0 where body ran through; 1 where it threw, and emulator_error() then says what.
template <class Body>
int guarded(const Body& body) {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    last_error = error.what();
    return 1;
  }
}

}  // namespace

extern "C" {

const char* emulator_error() { return last_error.c_str(); }

void emulator_set_order(int backward) {
  emulator::set_order(backward != 0 ? emulator::Order::kBackward : emulator::Order::kForward);
}

void* emulator_allocate(std::int64_t bytes, int at_end) {
  return emulator::allocate(static_cast<std::size_t>(bytes), at_end != 0);
}

void emulator_free_all() { emulator::free_all(); }

int emulated_second_moment(float* out, const void* x, std::int64_t rows, std::int64_t columns,
                           const std::int64_t* x_strides, int dtype, const unsigned char* mask,
                           std::int64_t mask_stride) {
  return guarded([&] {
    const SecondMoment params{out,  x,          rows, columns, x_strides[0], x_strides[1], static_cast<Dtype>(dtype),
                              mask, mask_stride};
    check(params);
    second_moment_cuda(params, 0, nullptr);
  });
}

int emulated_symmetrise(float* out, std::int64_t size) {
  return guarded([&] {
    const Symmetrise params{out, size};
    check(params);
    symmetrise_cuda(params, 0, nullptr);
  });
}

int emulated_rank_update(void* weight, std::int64_t rows, std::int64_t columns, const std::int64_t* weight_strides,
                         int dtype, const float* output_factor, const std::int64_t* output_strides,
                         const float* input_factor, const std::int64_t* input_strides, std::int64_t rank, int rounding,
                         std::int64_t seed, int* status) {
  return guarded([&] {
    const RankUpdate params{weight,
                            rows,
                            columns,
                            weight_strides[0],
                            weight_strides[1],
                            static_cast<Dtype>(dtype),
                            {output_factor, output_strides[0], output_strides[1]},
                            {input_factor, input_strides[0], input_strides[1]},
                            rank,
                            static_cast<Rounding>(rounding),
                            static_cast<std::uint64_t>(seed),
                            columns,
                            1};
    check(params);
    rank_update_cuda(params, status, 0, nullptr);
  });
}

}  // extern "C"
