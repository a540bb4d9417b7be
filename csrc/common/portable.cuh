// What the .cu files need of CUDA, behind one header: they also compile against the emulator in
// csrc/emulator, for tests without a GPU. Kernels use blocks and threads along x only, keep their
// shared memory in one struct, and are started by launch().
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#if defined(EASYEDIT_FAST_EMULATOR)
#include "emulator/cuda_emulator.h"
#else
#include <cuda_runtime.h>
#define EASYEDIT_FAST_SHARED(Type, name) __shared__ Type name
#endif

#include "common/numeric.h"

namespace easyedit_fast {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Makes a device the current one, and puts the former one back at the end.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check_cuda(cudaGetDevice(&former_), "cudaGetDevice");
    check_cuda(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceGuard() { cudaSetDevice(former_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int former_ = 0;
};

// Starts blocks x threads of a kernel on a stream. what names the operator in errors.
template <class... Params>
void launch(const char* what, void (*kernel)(Params...), std::int64_t blocks, int threads, cudaStream_t stream,
            Params... arguments) {
  if (blocks > INT32_MAX) throw std::runtime_error(std::string(what) + ": the matrix is too large for one launch");
#if defined(EASYEDIT_FAST_EMULATOR)
  static_cast<void>(stream);
  emulator::run(static_cast<int>(blocks), threads, [&] { kernel(arguments...); });
#else
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), 0, stream>>>(arguments...);
#endif
  check_cuda(cudaGetLastError(), what);
}

}  // namespace easyedit_fast
