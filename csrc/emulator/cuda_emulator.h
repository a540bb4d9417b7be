// A stand-in for the CUDA execution model on the CPU, for tests only: the .cu files compile against
// it with a plain C++ compiler, see common/portable.cuh.
//
// A block runs as one fiber a thread, warp by warp up to the next barrier, forwards or backwards. So a
// thread runs far ahead of its neighbours, and what a missing barrier allows to be read is not there
// yet, or no longer. Found besides: threads of a block at different barriers, or gone while others
// wait; access outside a buffer of allocate() or outside shared memory; shared memory that is read
// before it is written (it starts as NaN). Not modelled: data races, memory ordering, speed.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(threads)
#define threadIdx (::easyedit_fast::emulator::thread_index())
#define blockIdx (::easyedit_fast::emulator::block_index())
#define __syncthreads() ::easyedit_fast::emulator::barrier(__LINE__)
#define EASYEDIT_FAST_SHARED(Type, name) \
  Type& name = *static_cast<Type*>(::easyedit_fast::emulator::shared_memory(sizeof(Type)))

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

namespace easyedit_fast::emulator {

struct Index {
  unsigned x;
};

enum class Order { kForward, kBackward };

Index thread_index();
Index block_index();

// Waits until every thread of the block is at the barrier of this line.
void barrier(int line);

// The shared memory of the running block; one declaration a kernel. It ends at a page without access.
void* shared_memory(std::size_t bytes);

// Runs blocks x threads of a kernel. Throws std::runtime_error where the kernel breaks a rule above.
void run(int blocks, int threads, const std::function<void()>& kernel);

// The order in which run() takes blocks, warps and the threads of a warp.
void set_order(Order order);

// A device buffer between two pages without access; its end, or else its start, touches one of them.
void* allocate(std::size_t bytes, bool at_end);
void free_all();

}  // namespace easyedit_fast::emulator
