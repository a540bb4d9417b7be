// Instruction sets of the CPU: which there are, which one is in use, functions compiled for each.
#pragma once

#include <string>
#include <vector>

namespace easyedit_fast {

// In rising order: each has what those before it have. A new one needs a name and a test in cpu.cpp
// and a row of float_kernel() or bfloat16_kernel().
enum class CpuPath { kGeneric, kAvx2, kAvx512, kAvx512Bf16, kAmxBf16 };

CpuPath cpu_path();
std::string cpu_path_name();

// The paths that this processor has, and the choice of one, by which tests reach those below the best.
std::vector<std::string> cpu_paths();
void use_cpu_path(const std::string& name);

std::vector<std::string> cpu_features();

// Threads that are worth waking for so many multiply-adds or moved elements.
inline int useful_threads(double work, int threads) { return work < 65536.0 || threads < 1 ? 1 : threads; }

#if defined(__x86_64__)
#define EASYEDIT_FAST_HAS_X86 1
#define EASYEDIT_FAST_FOR_AVX2 __attribute__((target("avx2,fma")))
#define EASYEDIT_FAST_FOR_AVX512 __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")))
#define EASYEDIT_FAST_FOR_AVX512_BF16 __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")))
#define EASYEDIT_FAST_FOR_AMX_BF16 __attribute__((target("amx-tile,amx-bf16")))
#else
#define EASYEDIT_FAST_HAS_X86 0
#endif

// Body::run, whose plain loops are inlined and vectorised, compiled for each instruction set.
template <class Body, class Function = decltype(&Body::run)>
struct Compiled;

template <class Body, class Result, class... Arguments>
struct Compiled<Body, Result (*)(Arguments...)> {
  static Result generic(Arguments... arguments) { return Body::run(arguments...); }
#if EASYEDIT_FAST_HAS_X86
  EASYEDIT_FAST_FOR_AVX2 static Result avx2(Arguments... arguments) { return Body::run(arguments...); }
  EASYEDIT_FAST_FOR_AVX512 static Result avx512(Arguments... arguments) { return Body::run(arguments...); }
#endif
};

// The one for the path in use.
template <class Body>
auto compiled() -> decltype(&Body::run) {
#if EASYEDIT_FAST_HAS_X86
  if (cpu_path() >= CpuPath::kAvx512) return Compiled<Body>::avx512;
  if (cpu_path() == CpuPath::kAvx2) return Compiled<Body>::avx2;
#endif
  return Compiled<Body>::generic;
}

}  // namespace easyedit_fast
