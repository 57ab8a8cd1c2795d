#include "cpu/fork.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "cpu/system.h"

namespace gradstep::cpu {
namespace {

// Each side announces itself before it looks for the other (sequentially consistent), so one of them sees the other.
std::atomic<int> guards{0}, forks{0};
thread_local int own_guards = 0;
thread_local bool never_waits = false;

bool waits() { return own_guards == 0 && !never_waits; }

template <class Condition>
void wait_until(Condition holds) {
  while (!holds()) std::this_thread::sleep_for(std::chrono::microseconds(20));
}

void before_fork() {
  if (!waits()) return;
  ++forks;
  wait_until([] { return guards == 0; });
}

void in_parent() {
  if (waits()) --forks;
}

// Of all threads it has this one alone.
void in_child() {
  forks = 0;
  guards = own_guards;
}

[[maybe_unused]] const int handlers = system::at_fork(before_fork, in_parent, in_child);

}  // namespace

NoFork::NoFork() {
  while (++guards, forks != 0 && own_guards == 0) {
    --guards;
    wait_until([] { return forks == 0; });
  }
  ++own_guards;
}

NoFork::~NoFork() {
  --own_guards;
  --guards;
}

void fork_without_waiting() { never_waits = true; }

}  // namespace gradstep::cpu
