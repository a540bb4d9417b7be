#include "emulator/cuda_emulator.h"

#include <ucontext.h>

#include <csetjmp>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulator/memory.h"

namespace easyedit_fast::emulator {
namespace {

constexpr std::size_t kFiberStack = 64 * 1024;
constexpr std::size_t kSharedMemory = 48 * 1024;  // what a block gets without asking for more
constexpr int kEnded = -1;

// A context starts a fiber; from then on jumps switch, which, unlike swapcontext, need no system call.
struct Fiber {
  ucontext_t context;
  jmp_buf place;
  bool started = false;
  std::vector<char> stack = std::vector<char>(kFiberStack);
  int waits_at = 0;  // line of the barrier, or kEnded
};

struct Block {
  std::vector<Fiber> fibers;
  jmp_buf scheduler;
  const std::function<void()>* kernel = nullptr;
  unsigned block = 0;
  unsigned thread = 0;
  std::size_t shared_size = 0;
};

Order current_order = Order::kForward;
Block* current = nullptr;
char* shared_end = nullptr;

void fiber_main() {
  (*current->kernel)();
  current->fibers[current->thread].waits_at = kEnded;
  _longjmp(current->scheduler, 1);
}

// Runs one thread until it waits or ends.
void resume(Fiber& fiber) {
  if (_setjmp(current->scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

unsigned in_order(unsigned step, unsigned count) { return current_order == Order::kForward ? step : count - 1 - step; }

void start_fibers() {
  for (Fiber& fiber : current->fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.started = false;
    makecontext(&fiber.context, fiber_main, 0);
  }
}

// Lets every thread run to its next barrier or its end; says whether the block is done.
bool run_to_barrier() {
  const auto count = static_cast<unsigned>(current->fibers.size());
  for (unsigned step = 0; step < count; ++step) {
    current->thread = in_order(step, count);
    resume(current->fibers[current->thread]);
  }
  const int line = current->fibers[0].waits_at;
  for (const Fiber& fiber : current->fibers) {
    if (fiber.waits_at != line) {
      throw std::runtime_error("divergent barrier: threads of block " + std::to_string(current->block) +
                               " wait at different lines, or have ended while others wait");
    }
  }
  return line == kEnded;
}

void run_block(unsigned number) {
  current->block = number;
  current->shared_size = 0;
  std::memset(shared_end - kSharedMemory, 0xff, kSharedMemory);  // NaN, as float and as double
  start_fibers();
  while (!run_to_barrier()) {
  }
}

}  // namespace

Index thread_index() { return {current->thread}; }
Index block_index() { return {current->block}; }

void barrier(int line) {
  Fiber& fiber = current->fibers[current->thread];
  fiber.waits_at = line;
  if (_setjmp(fiber.place) == 0) _longjmp(current->scheduler, 1);
}

void* shared_memory(std::size_t bytes) {
  constexpr std::size_t kAlignment = 16;
  current->shared_size = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  return shared_end - current->shared_size;
}

void set_order(Order order) { current_order = order; }

void run(int blocks, int threads, const std::function<void()>& kernel) {
  Block block;
  block.fibers = std::vector<Fiber>(static_cast<std::size_t>(threads));
  block.kernel = &kernel;
  current = &block;
  shared_end = static_cast<char*>(allocate(kSharedMemory, true)) + kSharedMemory;
  sigjmp_buf landing;
  const FaultTrap trap(landing);
  if (sigsetjmp(landing, 1) != 0) {
    throw std::runtime_error("access outside a buffer by thread " + std::to_string(block.thread) + " of block " +
                             std::to_string(block.block));
  }
  const auto count = static_cast<unsigned>(blocks);
  for (unsigned step = 0; step < count; ++step) run_block(in_order(step, count));
}

}  // namespace easyedit_fast::emulator
