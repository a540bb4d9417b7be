#include "emulator/memory.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>
#include <vector>

#include "emulator/cuda_emulator.h"

namespace easyedit_fast::emulator {
namespace {

constexpr std::size_t kGuardPages = 16;  // a stray index of a tile lands in them
constexpr std::size_t kAlignment = 16;
constexpr std::size_t kSignalStack = 64 * 1024;

struct Mapping {
  std::uintptr_t begin;
  std::size_t size;
};

std::vector<Mapping> mappings;
sigjmp_buf* landing_place = nullptr;
struct sigaction former_action;
stack_t former_stack;
alignas(16) char signal_stack[kSignalStack];

void on_fault(int, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
  for (const Mapping& mapping : mappings) {
    if (address - mapping.begin < mapping.size) siglongjmp(*landing_place, 1);
  }
  sigaction(SIGSEGV, &former_action, nullptr);  // not ours: the access repeats, and faults there
}

}  // namespace

FaultTrap::FaultTrap(sigjmp_buf& landing) {
  landing_place = &landing;
  stack_t stack = {};
  stack.ss_sp = signal_stack;
  stack.ss_size = kSignalStack;
  sigaltstack(&stack, &former_stack);
  struct sigaction action = {};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  sigaction(SIGSEGV, &action, &former_action);
}

FaultTrap::~FaultTrap() {
  sigaction(SIGSEGV, &former_action, nullptr);
  sigaltstack(&former_stack, nullptr);
  landing_place = nullptr;
}

void* allocate(std::size_t bytes, bool at_end) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t inner = (bytes + kAlignment + page - 1) / page * page;
  const std::size_t guard = kGuardPages * page;
  const std::size_t size = inner + 2 * guard;
  void* begin = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (begin == MAP_FAILED) throw std::bad_alloc();
  char* usable = static_cast<char*>(begin) + guard;
  if (mprotect(usable, inner, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
  mappings.push_back({reinterpret_cast<std::uintptr_t>(begin), size});
  return at_end ? usable + (inner - bytes) : usable;
}

void free_all() {
  for (const Mapping& mapping : mappings) munmap(reinterpret_cast<void*>(mapping.begin), mapping.size);
  mappings.clear();
}

}  // namespace easyedit_fast::emulator
