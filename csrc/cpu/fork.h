// What fork() waits for.
#pragma once

namespace gradstep::cpu {

// While one lives, fork() in any other thread waits, and while a fork is under way the constructor waits: a child would
// otherwise find arrays half written, and no thread to finish them.
class NoFork {
 public:
  NoFork();
  ~NoFork();
  NoFork(const NoFork&) = delete;
  NoFork& operator=(const NoFork&) = delete;
};

// From now on fork() in this thread, a crash handler's say, waits for nothing: others may wait for this thread.
void fork_without_waiting();

}  // namespace gradstep::cpu
