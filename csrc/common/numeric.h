// Conversions, rounding and noise: the same bits on the CPU, on CUDA and in the emulator.
// Everything is free of branches on data, so that host compilers vectorise the loops around it.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/dtype.h"

#if defined(__CUDACC__)
#define EASYEDIT_FAST_INLINE __host__ __device__ __forceinline__
#else
#define EASYEDIT_FAST_INLINE inline __attribute__((always_inline))
#endif

namespace easyedit_fast {

EASYEDIT_FAST_INLINE std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

EASYEDIT_FAST_INLINE float float_of(std::uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// condition ? yes : no by masks: compilers vectorise it, also where yes or no is a result of float
// arithmetic that a branch would have to guard.
EASYEDIT_FAST_INLINE std::uint32_t select(bool condition, std::uint32_t yes, std::uint32_t no) {
  const std::uint32_t mask = 0u - static_cast<std::uint32_t>(condition);
  return (yes & mask) | (no & ~mask);
}

constexpr std::uint32_t kSign = 0x80000000u;
constexpr std::uint32_t kInfinity = 0x7f800000u;

EASYEDIT_FAST_INLINE bool is_finite(float value) { return (bits_of(value) & ~kSign) < kInfinity; }
EASYEDIT_FAST_INLINE bool is_finite(Float16 value) { return (value.bits & 0x7fffu) < 0x7c00u; }
EASYEDIT_FAST_INLINE bool is_finite(Bfloat16 value) { return (value.bits & 0x7fffu) < 0x7f80u; }

EASYEDIT_FAST_INLINE float to_float(float value) { return value; }

EASYEDIT_FAST_INLINE float to_float(Bfloat16 value) { return float_of(static_cast<std::uint32_t>(value.bits) << 16); }

EASYEDIT_FAST_INLINE float to_float(Float16 value) {
  const std::uint32_t magnitude = value.bits & 0x7fffu;
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16;
  const std::uint32_t normal = (magnitude << 13) + (112u << 23);
  const std::uint32_t special = (magnitude << 13) | kInfinity;
  // Below 2^-14 the value is a multiple of 2^-24.
  const std::uint32_t small = bits_of(static_cast<float>(static_cast<int>(magnitude)) * 0x1p-24f);
  const std::uint32_t finite = select(magnitude < 0x0400u, small, normal);
  return float_of(select(magnitude >= 0x7c00u, special, finite) | sign);
}

// Rounds to the nearest value, ties to even.
template <class T>
EASYEDIT_FAST_INLINE T round_nearest(float value);

template <>
EASYEDIT_FAST_INLINE float round_nearest<float>(float value) {
  return value;
}

template <>
EASYEDIT_FAST_INLINE Bfloat16 round_nearest<Bfloat16>(float value) {
  const std::uint32_t bits = bits_of(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & ~kSign) > kInfinity;
  return Bfloat16{static_cast<std::uint16_t>(select(is_nan, 0x7fc0u, rounded))};
}

template <>
EASYEDIT_FAST_INLINE Float16 round_nearest<Float16>(float value) {
  const std::uint32_t magnitude = bits_of(value) & ~kSign;
  const std::uint32_t sign = (bits_of(value) & kSign) >> 16;
  const std::uint32_t normal = ((magnitude + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13) - (112u << 10);
  // The spacing of float32 just above 0.5 is 2^-24, which is that of float16 below 2^-14.
  const std::uint32_t small = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  const std::uint32_t finite = select(magnitude < 0x38800000u, small, normal);
  const std::uint32_t special = select(magnitude > kInfinity, 0x7e00u, 0x7c00u);
  // From 65520 on, halfway to 2^16, a value rounds to infinity.
  return Float16{static_cast<std::uint16_t>(select(magnitude >= 0x477ff000u, special, finite) | sign)};
}

// A random 32-bit word by counter: Philox2x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011), counter = index xor the seed's high word, key = its low.
EASYEDIT_FAST_INLINE std::uint32_t random_word(std::uint64_t index, std::uint64_t seed) {
  std::uint32_t low = static_cast<std::uint32_t>(index);
  std::uint32_t high = static_cast<std::uint32_t>(index >> 32) ^ static_cast<std::uint32_t>(seed >> 32);
  std::uint32_t key = static_cast<std::uint32_t>(seed);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product = static_cast<std::uint64_t>(low) * 0xd256d193u;
    low = static_cast<std::uint32_t>(product >> 32) ^ key ^ high;
    high = static_cast<std::uint32_t>(product);
    key += 0x9e3779b9u;
  }
  return low;
}

// Rounds to one of the two neighbours: up with the probability (value - lower) / (upper - lower).
template <class T>
EASYEDIT_FAST_INLINE T round_stochastic(float value, std::uint32_t noise);

template <>
EASYEDIT_FAST_INLINE float round_stochastic<float>(float value, std::uint32_t) {
  return value;
}

template <>
EASYEDIT_FAST_INLINE Bfloat16 round_stochastic<Bfloat16>(float value, std::uint32_t noise) {
  const std::uint32_t rounded = (bits_of(value) + (noise >> 16)) >> 16;
  const std::uint32_t special = round_nearest<Bfloat16>(value).bits;
  return Bfloat16{static_cast<std::uint16_t>(select(is_finite(value), rounded, special))};
}

template <>
EASYEDIT_FAST_INLINE Float16 round_stochastic<Float16>(float value, std::uint32_t noise) {
  const std::uint32_t magnitude = bits_of(value) & ~kSign;
  const std::uint32_t sign = (bits_of(value) & kSign) >> 16;
  // From 2^16 - 2^5 on this may reach 0x7c00, which is infinity.
  const std::uint32_t normal = ((magnitude + (noise >> 19)) >> 13) - (112u << 10);
  // Below 2^-14 the spacing is 2^-24 and no longer follows the exponent.
  const bool is_small = magnitude < 0x38800000u;
  const float scaled = float_of(select(is_small, magnitude, 0u)) * 0x1p24f;
  const int floor = static_cast<int>(scaled);
  const float draw = static_cast<float>(static_cast<int>(noise >> 8)) * 0x1p-24f;
  const bool up = draw < scaled - static_cast<float>(floor);
  const std::uint32_t small = static_cast<std::uint32_t>(floor) + static_cast<std::uint32_t>(up);
  const std::uint32_t finite = select(is_small, small, normal) | sign;
  // 2^16 and above, and what is not finite, round as ever.
  const std::uint32_t special = round_nearest<Float16>(value).bits;
  return Float16{static_cast<std::uint16_t>(select(magnitude < 0x47800000u, finite, special))};
}

}  // namespace easyedit_fast
