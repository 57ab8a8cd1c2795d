// What the pool asks of the operating system about threads and forks; where a system lacks it, nothing is done.
#pragma once

#include <initializer_list>
#include <thread>

#if !defined(_WIN32)
#include <pthread.h>
#include <signal.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace gradstep::cpu::system {

using ThreadHandle = std::thread::native_handle_type;

#if defined(_WIN32)

inline int at_fork(void (*)(), void (*)(), void (*)()) { return 0; }

class BlockSignals {
 public:
  BlockSignals() {}
};

#else

// Registers functions that every fork() calls. A variable's initializer calls it when the library is loaded.
inline int at_fork(void (*before)(), void (*in_parent)(), void (*in_child)()) {
  return pthread_atfork(before, in_parent, in_child);
}

// While it lives, this thread blocks all signals except faults, so that a handler (Python's faulthandler) can still
// report a crash. Threads that it starts inherit that.
class BlockSignals {
 public:
  BlockSignals() {
    sigset_t blocked;
    sigfillset(&blocked);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigdelset(&blocked, fault);
    pthread_sigmask(SIG_SETMASK, &blocked, &before_);
  }
  ~BlockSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  BlockSignals(const BlockSignals&) = delete;
  BlockSignals& operator=(const BlockSignals&) = delete;

 private:
  sigset_t before_;
};

#endif

#if defined(__linux__)

inline void name_this_thread(const char* name) { pthread_setname_np(pthread_self(), name); }

inline int current_core() { return sched_getcpu(); }

// The cores that the calling thread may run on.
class Affinity {
 public:
  Affinity() : known_(sched_getaffinity(0, sizeof cores_, &cores_) == 0) {}
  void exclude(int core) { CPU_CLR(static_cast<std::size_t>(core), &cores_); }
  // Returns whether the thread now runs on these cores alone.
  bool apply_to(ThreadHandle thread) const {
    return known_ && CPU_COUNT(&cores_) > 0 && pthread_setaffinity_np(thread, sizeof cores_, &cores_) == 0;
  }

 private:
  cpu_set_t cores_;
  bool known_;
};

#else

#if defined(__APPLE__)
inline void name_this_thread(const char* name) { pthread_setname_np(name); }
#else
inline void name_this_thread(const char*) {}
#endif

inline int current_core() { return -1; }

class Affinity {
 public:
  void exclude(int) {}
  bool apply_to(ThreadHandle) const { return false; }
};

#endif

}  // namespace gradstep::cpu::system
