// The Python module easyedit_fast._kernels: registration only. Tensors come as addresses, shapes and
// strides, so nothing here depends on torch. The caller keeps the memory alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>

#include "common/cpu.h"
#include "common/cuda_info.h"
#include "rank_update/rank_update.h"
#include "second_moment/second_moment.h"

namespace py = pybind11;

namespace {

using namespace easyedit_fast;
using Address = std::uintptr_t;
using Strides = std::array<std::int64_t, 2>;

SecondMoment second_moment_params(Address out, Address x, std::int64_t rows, std::int64_t columns,
                                  std::int64_t row_stride, std::int64_t column_stride, int dtype, Address mask,
                                  std::int64_t mask_stride) {
  const SecondMoment params{reinterpret_cast<float*>(out),
                            reinterpret_cast<const void*>(x),
                            rows,
                            columns,
                            row_stride,
                            column_stride,
                            static_cast<Dtype>(dtype),
                            reinterpret_cast<const unsigned char*>(mask),
                            mask_stride};
  check(params);
  return params;
}

Symmetrise symmetrise_params(Address out, std::int64_t size) {
  const Symmetrise params{reinterpret_cast<float*>(out), size};
  check(params);
  return params;
}

RankUpdate rank_update_params(Address weight, std::int64_t rows, std::int64_t columns, const Strides& weight_strides,
                              int dtype, Address output_factor, const Strides& output_factor_strides,
                              Address input_factor, const Strides& input_factor_strides, std::int64_t rank,
                              int rounding, std::int64_t seed) {
  const RankUpdate params{
      reinterpret_cast<void*>(weight),
      rows,
      columns,
      weight_strides[0],
      weight_strides[1],
      static_cast<Dtype>(dtype),
      {reinterpret_cast<const float*>(output_factor), output_factor_strides[0], output_factor_strides[1]},
      {reinterpret_cast<const float*>(input_factor), input_factor_strides[0], input_factor_strides[1]},
      rank,
      static_cast<Rounding>(rounding),
      static_cast<std::uint64_t>(seed),
      columns,
      1};
  check(params);
  return params;
}

// Wraps a function of (params, extra...) into one of (the arguments of make_params, extra...), which
// releases the GIL around the work.
template <class Params, class... Fields, class Result, class... Extra>
auto bound(Params (*make_params)(Fields...), Result (*work)(const Params&, Extra...)) {
  return [=](Fields... fields, Extra... extra) {
    const Params params = make_params(fields...);
    const py::gil_scoped_release release;
    return work(params, extra...);
  };
}

void second_moment_on_cuda(const SecondMoment& params, int device, Address stream) {
  second_moment_cuda(params, device, reinterpret_cast<void*>(stream));
}

void symmetrise_on_cuda(const Symmetrise& params, int device, Address stream) {
  symmetrise_cuda(params, device, reinterpret_cast<void*>(stream));
}

void rank_update_on_cuda(const RankUpdate& params, Address status, int device, Address stream) {
  rank_update_cuda(params, reinterpret_cast<int*>(status), device, reinterpret_cast<void*>(stream));
}

void bind_second_moment(py::module_& module) {
  module.def("second_moment_cpu", bound(second_moment_params, second_moment_cpu), py::kw_only(), py::arg("out"),
             py::arg("x"), py::arg("rows"), py::arg("columns"), py::arg("row_stride"), py::arg("column_stride"),
             py::arg("dtype"), py::arg("mask"), py::arg("mask_stride"), py::arg("threads"));
  module.def("second_moment_cuda", bound(second_moment_params, second_moment_on_cuda), py::kw_only(), py::arg("out"),
             py::arg("x"), py::arg("rows"), py::arg("columns"), py::arg("row_stride"), py::arg("column_stride"),
             py::arg("dtype"), py::arg("mask"), py::arg("mask_stride"), py::arg("device"), py::arg("stream"));
  module.def("symmetrise_cpu", bound(symmetrise_params, symmetrise_cpu), py::kw_only(), py::arg("out"), py::arg("size"),
             py::arg("threads"));
  module.def("symmetrise_cuda", bound(symmetrise_params, symmetrise_on_cuda), py::kw_only(), py::arg("out"),
             py::arg("size"), py::arg("device"), py::arg("stream"));
}

void bind_rank_update(py::module_& module) {
  module.def("rank_update_cpu", bound(rank_update_params, rank_update_cpu), py::kw_only(), py::arg("weight"),
             py::arg("rows"), py::arg("columns"), py::arg("weight_strides"), py::arg("dtype"), py::arg("output_factor"),
             py::arg("output_factor_strides"), py::arg("input_factor"), py::arg("input_factor_strides"),
             py::arg("rank"), py::arg("rounding"), py::arg("seed"), py::arg("check_first"), py::arg("threads"));
  module.def("rank_update_cuda", bound(rank_update_params, rank_update_on_cuda), py::kw_only(), py::arg("weight"),
             py::arg("rows"), py::arg("columns"), py::arg("weight_strides"), py::arg("dtype"), py::arg("output_factor"),
             py::arg("output_factor_strides"), py::arg("input_factor"), py::arg("input_factor_strides"),
             py::arg("rank"), py::arg("rounding"), py::arg("seed"), py::arg("status"), py::arg("device"),
             py::arg("stream"));
}

}  // namespace

PYBIND11_MODULE(_kernels, module) {
  module.doc() = "Kernels of easyedit-fast; call them through easyedit_fast.kernels.";
  module.attr("VERSION") = EASYEDIT_FAST_VERSION;
  module.attr("CUDA_BUILT") = py::bool_(EASYEDIT_FAST_CUDA);
  module.attr("CUDA_TARGETS") = py::tuple(py::cast(cuda_targets()));
  module.def("cpu_features", &cpu_features);
  module.def("cpu_path", &cpu_path_name);
  module.def("cpu_paths", &cpu_paths);
  module.def("use_cpu_path", &use_cpu_path, py::kw_only(), py::arg("name"));
  bind_second_moment(module);
  bind_rank_update(module);
}
