// How a job is shared, and why nobody touches one that is over.
//
// The job lives on the caller's stack. A worker reaches it only through a seat: under the mutex it takes one of
// `seats_` and is counted in `inside_`; under the mutex it leaves again. Whoever finds no index left clears the
// remaining seats, so a worker that wakes late finds none and sleeps on: it has seen the pool, never the job. The
// caller clears them too, and then waits only for those inside, each of whom is at work or on the way out. A next job
// is seated only after that, so no seat can be mistaken for another job's: there is no generation to compare.
//
// `busy_` lets one caller at a time seat a job; all others run their own tasks themselves. Workers sleep when there is
// no seat, and nobody spins: a woken worker starts some 10 us after the call (2-core VM, Linux 6.18), steps are
// milliseconds apart, and the core may be a neighbour's.
#include "cpu/pool.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

namespace gradstep::cpu {
namespace {

struct Job {
  std::size_t count;
  Task task;
  void* context;
  std::atomic<std::size_t> next{0};

  // Relaxed is enough: the counter shares out indices, and the pool's mutex orders what the tasks read and wrote.
  void work() {
    for (std::size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(context, i);
  }
};

class Pool {
 public:
  // Runs the job with up to `helpers` workers; false, with nothing done, if the pool is busy.
  bool run(Job& job, int helpers) {
    if (busy_.exchange(true, std::memory_order_acquire)) return false;
    grow(helpers);
    helpers = std::min(helpers, workers());
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      seats_ = helpers;
    }
    for (int i = 0; i < helpers; ++i) seat_free_.notify_one();
    job.work();
    {
      std::unique_lock<std::mutex> lock(mutex_);
      seats_ = 0;
      all_left_.wait(lock, [this] { return inside_ == 0; });
      job_ = nullptr;
    }
    busy_.store(false, std::memory_order_release);
    return true;
  }

  int workers() const { return workers_.load(std::memory_order_relaxed); }

 private:
  // Starts workers until there are `wanted`, or as many as the system grants. Only the caller that holds busy_ is here.
  void grow(int wanted) {
    if (workers() >= wanted) return;
    // A thread inherits its creator's mask. Signals are the application's business; only the faults stay open, so that
    // a handler (Python's faulthandler) can still report a crash inside a task.
    sigset_t blocked, before;
    sigfillset(&blocked);
    for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) sigdelset(&blocked, fault);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    try {
      for (; workers() < wanted; workers_.fetch_add(1, std::memory_order_relaxed)) {
        std::thread([this] { serve(); }).detach();
      }
    } catch (const std::exception&) {
      // No more threads to be had: go on with those there are.
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  // A worker's life. It ends with the process: the pool is never destroyed.
  [[noreturn]] void serve() {
#if defined(__APPLE__)
    pthread_setname_np("gradstep");
#elif defined(__linux__)
    pthread_setname_np(pthread_self(), "gradstep");
#endif
    for (std::unique_lock<std::mutex> lock(mutex_);;) {
      seat_free_.wait(lock, [this] { return seats_ > 0; });
      --seats_;
      ++inside_;
      Job& job = *job_;
      lock.unlock();
      job.work();
      lock.lock();
      seats_ = 0;
      if (--inside_ == 0) all_left_.notify_one();
    }
  }

  std::atomic<bool> busy_{false};
  std::atomic<int> workers_{0};

  std::mutex mutex_;
  std::condition_variable seat_free_;  // workers sleep here
  std::condition_variable all_left_;   // the caller sleeps here
  Job* job_ = nullptr;                 // these three under mutex_
  int seats_ = 0;                      // workers that may still join the job
  int inside_ = 0;                     // workers that have joined and not left
};

// Never freed: workers sleep in it while the process exits. Its threads do not survive fork(), and its mutex may be
// held by one of them, so a child forgets it untouched and makes another. The handler is set when the library is
// loaded, hence before there is a pool to forget.
std::atomic<Pool*> the_pool{nullptr};
[[maybe_unused]] const int fork_handler = pthread_atfork(nullptr, nullptr, [] { the_pool.store(nullptr); });

Pool& pool() {
  Pool* found = the_pool.load(std::memory_order_acquire);
  if (found != nullptr) return *found;
  // No static local: its guard, held in another thread at fork(), would stay locked in the child.
  Pool* const made = new Pool;
  if (the_pool.compare_exchange_strong(found, made)) return *made;
  delete made;
  return *found;
}

}  // namespace

void parallel_for(std::size_t count, int threads, Task task, void* context) {
  Job job{count, task, context};
  if (threads > 1 && count > 1) {
    const std::size_t helpers = std::min(count, static_cast<std::size_t>(threads)) - 1;
    if (pool().run(job, static_cast<int>(helpers))) return;
  }
  job.work();
}

int worker_count() {
  const Pool* const found = the_pool.load(std::memory_order_acquire);
  return found == nullptr ? 0 : found->workers();
}

}  // namespace gradstep::cpu
