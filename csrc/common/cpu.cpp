#include "common/cpu.h"

#include <algorithm>
#include <atomic>
#include <iterator>
#include <stdexcept>

#if EASYEDIT_FAST_HAS_X86
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace easyedit_fast {
namespace {

constexpr const char* kPathNames[] = {"generic", "avx2", "avx512", "avx512_bf16", "amx_bf16"};
static_assert(std::size(kPathNames) == static_cast<std::size_t>(CpuPath::kAmxBf16) + 1);

#if EASYEDIT_FAST_HAS_X86
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_avx512_bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }

// Whether the processor has AMX for bfloat16 and Linux grants this process its tile registers.
bool has_amx_bf16() {
#if defined(__linux__)
  constexpr unsigned kBf16AndTile = 1u << 22 | 1u << 24;
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kBf16AndTile) != kBf16AndTile) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

CpuPath best_path() {
#if EASYEDIT_FAST_HAS_X86
  if (has_avx512_bf16() && has_amx_bf16()) return CpuPath::kAmxBf16;
  // Intel's vdpbf16ps does less in a cycle than two float32 fused multiply-adds.
  if (has_avx512_bf16() && !__builtin_cpu_is("intel")) return CpuPath::kAvx512Bf16;
  if (has_avx512()) return CpuPath::kAvx512;
  if (has_avx2()) return CpuPath::kAvx2;
#endif
  return CpuPath::kGeneric;
}

// Asked once: the answer does not change, and a permission stays granted.
CpuPath known_best_path() {
  static const CpuPath path = best_path();
  return path;
}

std::atomic<CpuPath>& chosen_path() {
  static std::atomic<CpuPath> path{known_best_path()};
  return path;
}

}  // namespace

CpuPath cpu_path() { return chosen_path().load(std::memory_order_relaxed); }

std::vector<std::string> cpu_paths() { return {kPathNames, kPathNames + static_cast<int>(known_best_path()) + 1}; }

std::string cpu_path_name() { return kPathNames[static_cast<int>(cpu_path())]; }

void use_cpu_path(const std::string& name) {
  const std::vector<std::string> names = cpu_paths();
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) throw std::invalid_argument("this processor has no path '" + name + "'");
  chosen_path().store(static_cast<CpuPath>(found - names.begin()), std::memory_order_relaxed);
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> features;
#if EASYEDIT_FAST_HAS_X86
  if (__builtin_cpu_supports("avx2")) features.emplace_back("avx2");
  if (__builtin_cpu_supports("fma")) features.emplace_back("fma");
  if (__builtin_cpu_supports("avx512f")) features.emplace_back("avx512f");
  if (__builtin_cpu_supports("avx512bf16")) features.emplace_back("avx512_bf16");
  if (has_amx_bf16()) features.emplace_back("amx_bf16");
#endif
  return features;
}

}  // namespace easyedit_fast
