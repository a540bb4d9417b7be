// The product of two chunks in shared memory, spread over a block of threads: the inner part of both
// kernels. Thread t of 256 owns the 4 x 4 elements (t / 16 + 16 r, t % 16 + 16 c) of a 64 x 64 tile.
#pragma once

#include "common/portable.cuh"

namespace easyedit_fast {

constexpr int kTile = 64;
constexpr int kChunk = 16;
constexpr int kThreads = 256;
constexpr int kSide = 16;
constexpr int kPerThread = kTile / kSide;

// Chunks whose products form one float32 sum before it is folded into the total.
constexpr int kChunksPerSum = 4;

struct Chunks {
  float a[kChunk][kTile];
  float b[kChunk][kTile];
};

struct Sums {
  float value[kPerThread][kPerThread] = {};
};

__device__ __forceinline__ int row_of(int r) { return static_cast<int>(threadIdx.x) / kSide + kSide * r; }
__device__ __forceinline__ int column_of(int c) { return static_cast<int>(threadIdx.x) % kSide + kSide * c; }

__device__ __forceinline__ void multiply_add(const Chunks& chunks, Sums& sums) {
#pragma unroll
  for (int k = 0; k < kChunk; ++k) {
    float a[kPerThread];
    float b[kPerThread];
#pragma unroll
    for (int r = 0; r < kPerThread; ++r) a[r] = chunks.a[k][row_of(r)];
#pragma unroll
    for (int c = 0; c < kPerThread; ++c) b[c] = chunks.b[k][column_of(c)];
#pragma unroll
    for (int r = 0; r < kPerThread; ++r) {
#pragma unroll
      for (int c = 0; c < kPerThread; ++c) sums.value[r][c] += a[r] * b[c];
    }
  }
}

__device__ __forceinline__ void fold(Sums& sums, Sums& total) {
#pragma unroll
  for (int r = 0; r < kPerThread; ++r) {
#pragma unroll
    for (int c = 0; c < kPerThread; ++c) {
      total.value[r][c] += sums.value[r][c];
      sums.value[r][c] = 0.0f;
    }
  }
}

// total = Σ over depth of a(k, i) b(k, j); load(first, chunks) fills the chunks from k = first on,
// with zeros where there is nothing.
template <class Load>
__device__ __forceinline__ void multiply_tiles(std::int64_t depth, Chunks& chunks, Sums& total, const Load& load) {
  Sums sums;
  int in_sum = 0;
  for (std::int64_t first = 0; first < depth; first += kChunk) {
    load(first, chunks);
    __syncthreads();  // the chunks are whole before anyone reads them
    multiply_add(chunks, sums);
    if (++in_sum == kChunksPerSum) {
      fold(sums, total);
      in_sum = 0;
    }
    __syncthreads();  // everyone has read them before they are overwritten
  }
  fold(sums, total);
}

}  // namespace easyedit_fast
