#include <ucontext.h>

#include <cstdio>
#include <memory>
#include <vector>

#include "cuda_runtime.h"

namespace emulated {
namespace {

constexpr std::size_t kStack = 128 << 10;
constexpr unsigned kWarp = 32;

// A barrier: a round ends when all members have arrived.
struct Barrier {
  unsigned members = 0, arrived = 0;
  unsigned long round = 0;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool done = false;
};

thread_local std::vector<Fiber> fibers;
thread_local ucontext_t scheduler;
thread_local Barrier of_block;
thread_local std::vector<Barrier> of_warps;
thread_local std::vector<std::uint32_t> given;
thread_local const std::function<void()>* the_kernel;
thread_local unsigned long progress;

void wait(Barrier& barrier) {
  ++progress;
  const unsigned long round = barrier.round;
  if (++barrier.arrived == barrier.members) {
    barrier.arrived = 0;
    ++barrier.round;
    return;
  }
  const unsigned me = thread.x;
  while (barrier.round == round) {
    swapcontext(&fibers[me].context, &scheduler);
    thread.x = me;
  }
  ++progress;
}

void begin_fiber(unsigned index) {
  thread.x = index;
  (*the_kernel)();
  fibers[index].done = true;
  ++progress;
}

}  // namespace

void wait_for_block() { wait(of_block); }
void wait_for_warp() { wait(of_warps[thread.x / kWarp]); }

std::uint32_t* exchange(std::uint32_t x) {
  given[thread.x] = x;
  wait_for_warp();
  return &given[thread.x / kWarp * kWarp];
}

void run(unsigned blocks, unsigned threads, const std::function<void()>& kernel) {
  if (fibers.size() < threads) fibers = std::vector<Fiber>(threads);
  given.resize(threads);
  the_kernel = &kernel;
  for (block.x = 0; block.x < blocks; ++block.x) {
    of_block = {threads, 0, 0};
    of_warps.assign(threads / kWarp, Barrier{kWarp, 0, 0});
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& fiber = fibers[i];
      fiber.done = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = &scheduler;
      makecontext(&fiber.context, reinterpret_cast<void (*)()>(&begin_fiber), 1, i);
    }
    for (bool left = true; left;) {
      left = false;
      const unsigned long before = progress;
      for (unsigned i = 0; i < threads; ++i) {
        if (fibers[i].done) continue;
        swapcontext(&scheduler, &fibers[i].context);
        left = left || !fibers[i].done;
      }
      if (progress == before) {
        std::fprintf(stderr, "emulated CUDA: threads wait for others that have ended\n");
        std::abort();
      }
    }
  }
}

}  // namespace emulated
