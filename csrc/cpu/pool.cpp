// How a job is shared, and why no thread accesses a job that has ended.
//
// The job is on the caller's stack. A worker accesses it only while it is counted in `inside_`: it takes one of
// `seats_` under the mutex to enter, and leaves under the mutex. A thread that finds no index left clears the remaining
// seats, so a worker that wakes late finds none and never accesses the job. The caller clears them too, and then waits
// only for the workers inside, which are at work or leaving. The next job gets seats only after that, so a seat always
// belongs to the current job and no generation counter is needed.
//
// Each thread starts with its own range of neighbouring indices, the same one while the number of threads is the same,
// so that its data is in its cache. A thread that has finished its range takes indices from the others', so that a
// thread that starts late, or is not scheduled, delays the job by one task at most.
//
// `busy_` admits one caller at a time; the others run their tasks on their own thread. After a job, a worker looks for
// the next one for kSpinMicroseconds, yielding its core to other threads, and then sleeps: steps on small arrays follow
// one another at once, others are milliseconds apart.
#include "cpu/pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "cpu/fork.h"
#include "cpu/system.h"
#include "cpu/tuning.h"

namespace gradstep::cpu {
namespace {

// Waits up to `timeout` for a condition that another thread will soon make true. Returns whether it became true.
template <class Condition>
bool spin_until(Condition holds, std::chrono::microseconds timeout, bool yields = true) {
  for (const auto until = std::chrono::steady_clock::now() + timeout;;) {
    for (int i = 0; i < 32; ++i) {
      if (holds()) return true;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      __asm__ volatile("yield");
#endif
    }
    if (std::chrono::steady_clock::now() > until) return false;
    if (yields) std::this_thread::yield();  // lets other threads use this core
  }
}

struct Worker {
  system::ThreadHandle thread;
  int excluded_core = -1;  // the caller's core that it may not run on; -1: none
};

// Sets the workers' affinity to the caller's cores except `core`; -1 excludes none. Linux (6.18, a VM of two cores) was
// seen to wake workers on the caller's core and to leave them there for milliseconds while the other core was idle.
void exclude_core(int core, std::vector<Worker>& workers) {
  const auto stays = [=](const Worker& worker) { return worker.excluded_core == core; };
  if (std::all_of(workers.begin(), workers.end(), stays)) return;
  system::Affinity cores;
  if (core >= 0) cores.exclude(core);
  for (Worker& worker : workers) {
    if (!stays(worker) && cores.apply_to(worker.thread)) worker.excluded_core = core;
  }
}

// Indices [next, end), on a separate cache line.
struct alignas(64) IndexRange {
  std::atomic<std::size_t> next{0};
  std::size_t end = 0;

  bool empty() const { return next.load(std::memory_order_relaxed) >= end; }
};

struct Job {
  Task task;
  void* context;
  IndexRange* ranges;
  std::size_t threads;

  // Relaxed ordering suffices: the counters only distribute indices, and the pool's mutex orders the tasks' reads and
  // writes.
  void work(std::size_t home) {
    run_range(ranges[home]);
    const auto none_left = [this] {
      return std::all_of(ranges, ranges + threads, [](const IndexRange& range) { return range.empty(); });
    };
    if (spin_until(none_left, std::chrono::microseconds(kStealDelayMicroseconds), /*yields=*/false)) return;
    for (std::size_t i = 1; i < threads; ++i) run_range(ranges[(home + i) % threads]);
  }

 private:
  void run_range(IndexRange& range) {
    while (!range.empty()) {
      const std::size_t index = range.next.fetch_add(1, std::memory_order_relaxed);
      if (index < range.end) task(context, index);
    }
  }
};

class Pool {
 public:
  // Runs the tasks with up to `threads` - 1 workers. Returns false, having done nothing, if the pool is busy or no
  // worker is available.
  bool run(std::size_t count, std::size_t threads, bool wake, Task task, void* context) {
    if (busy_.exchange(true, std::memory_order_acquire)) return false;
    if (wake) grow(threads - 1);
    const std::size_t seats = std::min(threads - 1, wake ? workers() : workers() - asleep_);
    if (seats == 0) {
      busy_.store(false, std::memory_order_release);
      return false;
    }
    threads = seats + 1;
    for (std::size_t i = 0; i < threads; ++i) {
      ranges_[i].next.store(count * i / threads, std::memory_order_relaxed);
      ranges_[i].end = count * (i + 1) / threads;
    }
    exclude_core(system::current_core(), worker_list_);
    Job job{task, context, ranges_.get(), threads};
    std::size_t to_wake = 0;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      seats_ = seats;
      to_wake = seats - std::min(seats, workers() - asleep_);
      job_ = &job;
    }
    for (std::size_t i = 0; i < to_wake; ++i) seat_free_.notify_one();
    job.work(0);
    {
      std::unique_lock<std::mutex> lock(mutex_);
      seats_ = 0;
      if (inside_ > 0) {
        lock.unlock();
        // A worker that has not finished by now is waiting for a core, and may use this one.
        if (!spin_until([this] { return inside_ == 0; }, std::chrono::microseconds(kSpinMicroseconds))) {
          exclude_core(-1, worker_list_);
        }
        lock.lock();
      }
      all_left_.wait(lock, [this] { return inside_ == 0; });
      job_ = nullptr;
    }
    busy_.store(false, std::memory_order_release);
    return true;
  }

  std::size_t workers() const { return workers_.load(std::memory_order_relaxed); }

 private:
  // Starts workers until there are `wanted`, or as many as the system grants, and allocates a range for each. Called
  // only by the caller that holds busy_.
  void grow(std::size_t wanted) {
    if (workers() >= wanted) return;
    const system::BlockSignals block_signals;  // signals are for the application's threads
    try {
      ranges_ = std::make_unique<IndexRange[]>(wanted + 1);
      for (worker_list_.reserve(wanted); workers() < wanted; workers_.fetch_add(1, std::memory_order_relaxed)) {
        std::thread thread([this, home = workers() + 1] { serve(home); });
        worker_list_.push_back({thread.native_handle()});
        thread.detach();
      }
    } catch (const std::exception&) {
      // The system grants no more threads; continue with those that exist.
    }
  }

  // The main loop of a worker. It ends with the process: the pool is never destroyed.
  [[noreturn]] void serve(std::size_t home) {
    fork_without_waiting();
    system::name_this_thread("gradstep");
    for (std::unique_lock<std::mutex> lock(mutex_);;) {
      lock.unlock();
      spin_until([this] { return seats_ > 0; }, std::chrono::microseconds(kSpinMicroseconds));
      lock.lock();
      if (seats_ == 0) {
        // After any wake-up without a seat the worker looks for a job again, to be in time for the next.
        ++asleep_;
        seat_free_.wait(lock);
        --asleep_;
        continue;
      }
      const std::size_t seat = seats_--;
      ++inside_;
      Job& job = *job_;
      lock.unlock();
      job.work(home < job.threads ? home : seat);
      lock.lock();
      seats_ = 0;
      if (--inside_ == 0) all_left_.notify_one();
    }
  }

  std::atomic<bool> busy_{false};
  std::atomic<std::size_t> workers_{0};
  std::vector<Worker> worker_list_;  // worker_list_ and ranges_ change only in the call that holds busy_
  std::unique_ptr<IndexRange[]> ranges_ = std::make_unique<IndexRange[]>(1);  // one per worker and one for the caller

  std::mutex mutex_;
  std::condition_variable seat_free_;  // workers sleep here
  std::condition_variable all_left_;   // the caller sleeps here
  // These four change under mutex_; the atomic ones are also read without it.
  Job* job_ = nullptr;
  std::atomic<std::size_t> asleep_{0};  // workers that wait for a notification
  std::atomic<std::size_t> seats_{0};   // workers that may still join the job
  std::atomic<std::size_t> inside_{0};  // workers that have joined and not left
};

// Never freed: workers sleep in it while the process exits. Its threads do not survive fork(), and one of them may hold
// its mutex, so a child abandons it and creates another. The handler is registered when the library is loaded, before
// any pool exists.
std::atomic<Pool*> the_pool{nullptr};
[[maybe_unused]] const int fork_handler = system::at_fork(nullptr, nullptr, [] { the_pool.store(nullptr); });

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

void parallel_for(std::size_t count, int threads, bool wake, Task task, void* context) {
  const std::size_t useful = std::min(count, static_cast<std::size_t>(std::max(threads, 1)));
  if (useful > 1 && pool().run(count, useful, wake, task, context)) return;
  for (std::size_t i = 0; i < count; ++i) task(context, i);
}

int worker_count() {
  const Pool* const found = the_pool.load(std::memory_order_acquire);
  return found == nullptr ? 0 : static_cast<int>(found->workers());
}

}  // namespace gradstep::cpu
