// The pool: every task runs once, with any caller, with several callers at a time, and after fork(); and the number of
// cores that it defaults to.
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "cpu/cores.h"
#include "cpu/fork.h"
#include "cpu/pool.h"

// Clang reports its sanitizers by __has_feature, GCC by macros.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif

#if defined(__linux__)
#include <sys/prctl.h>

// Replaces the C library's function, which a new worker calls first: while the gate is closed, no worker reaches a job.
static std::atomic<bool> gate_closed{false};
static std::atomic<int> at_gate{0};
extern "C" int pthread_setname_np(pthread_t, const char* name) {
  ++at_gate;
  while (gate_closed) std::this_thread::sleep_for(std::chrono::microseconds(50));
  --at_gate;
  return prctl(PR_SET_NAME, name);  // names the calling thread
}
#endif

namespace {

using gradstep::cpu::parallel_for;
using gradstep::cpu::worker_count;
namespace fs = std::filesystem;

// parallel_for with any callable.
template <class Body>
void each(std::size_t count, int threads, const Body& body, bool wake = true) {
  parallel_for(
      count, threads, wake, [](void* context, std::size_t index) { (*static_cast<const Body*>(context))(index); },
      const_cast<Body*>(&body));
}

template <class Condition>
void wait_until(const Condition& condition) {
  while (!condition()) std::this_thread::sleep_for(std::chrono::microseconds(50));  // alarm() ends a hang
}

// Runs `threads` tasks that wait for one another: returns only if that many threads take part.
void meet(int threads) {
  std::atomic<int> here{0};
  each(static_cast<std::size_t>(threads), threads, [&](std::size_t) {
    ++here;
    wait_until([&] { return here == threads; });
  });
}

// True if every index of a job runs exactly once.
bool runs_each_once(std::size_t count, int threads) {
  std::vector<std::atomic<int>> runs(count);
  each(count, threads, [&](std::size_t index) { ++runs[index]; });
  for (const std::atomic<int>& n : runs) {
    if (n != 1) return false;
  }
  return true;
}

// Runs `body` in a forked child. Returns true if body() returned true within 30 seconds.
template <class Body>
bool in_child(const Body& body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(30);  // children do not inherit alarms
    _exit(body() ? 0 : 1);
  }
  int status = -1;
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// The number of threads of this process; 0 if the system does not report it.
std::ptrdiff_t threads_alive() {
  const fs::path tasks = "/proc/self/task";
  return fs::exists(tasks) ? std::distance(fs::directory_iterator(tasks), fs::directory_iterator()) : 0;
}

// This test comes first, because it needs a process without workers.
TEST(no_thread_before_the_first_use) {
  const std::ptrdiff_t before = threads_alive();
  CHECK(worker_count() == 0);
  CHECK(runs_each_once(0, 8));
  CHECK(runs_each_once(1, 8));
  CHECK(runs_each_once(100, 1));
  CHECK(runs_each_once(100, 0));
  CHECK(runs_each_once(100, -1));
  CHECK(worker_count() == 0);
  CHECK(threads_alive() == before);
}

#if defined(__linux__) && !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
// This test comes second: threads that have ended leave stacks that new ones could reuse.
TEST(goes_on_where_no_thread_can_be_started) {
  CHECK(in_child([] {
    const rlimit none{0, 0};
    if (setrlimit(RLIMIT_AS, &none) != 0) return false;
    const void* const memory = mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const bool is_limited = memory == MAP_FAILED;  // not under an emulator
    return runs_each_once(100, 4) && (worker_count() == 0) == is_limited;
  }));
}
#endif

#if defined(__linux__)
// This test comes third: its late worker must be the first worker.
TEST(a_worker_that_never_comes_is_not_waited_for) {
  gate_closed = true;
  for (int i = 0; i < 3; ++i) CHECK(runs_each_once(100, 2));  // the worker waits at the gate
  CHECK(worker_count() == 1);
  wait_until([] { return at_gate == 1; });
  gate_closed = false;  // the worker proceeds and finds that the jobs have ended
  wait_until([] { return at_gate == 0; });
  meet(2);
  CHECK(worker_count() == 1);
}
#endif

TEST(workers_start_as_needed_and_stay) {
  meet(2);
  CHECK(worker_count() == 1);
  CHECK(runs_each_once(2, 8));  // needs only one worker
  CHECK(worker_count() == 1);
  meet(4);
  CHECK(worker_count() == 3);
  const std::ptrdiff_t before = threads_alive();
  for (int i = 0; i < 100; ++i) CHECK(runs_each_once(16, 4));
  CHECK(worker_count() == 3);
  CHECK(threads_alive() == before);
}

TEST(more_threads_than_cores) {
  for (int i = 0; i < 50; ++i) meet(8);
  CHECK(worker_count() == 7);
}

TEST(every_index_runs_once) {
  for (const int count : {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 63, 64, 65, 1000, 4097}) {
    for (const int threads : {1, 2, 3, 4, 8}) {
      for (int i = 0; i < 5; ++i) CHECK(runs_each_once(static_cast<std::size_t>(count), threads));
    }
  }
}

TEST(no_more_threads_than_asked_for) {
  for (int i = 0; i < 30; ++i) {
    meet(8);  // starts seven workers
    const int threads = 1 + i % 3;
    std::mutex mutex;
    std::set<std::thread::id> seen;
    each(16, threads, [&](std::size_t) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
      const std::lock_guard<std::mutex> lock(mutex);
      seen.insert(std::this_thread::get_id());
    });
    CHECK(seen.size() <= static_cast<std::size_t>(threads));
    CHECK(threads > 1 || seen.count(std::this_thread::get_id()) == 1);
  }
}

TEST(a_small_job_takes_those_who_are_awake) {
  for (int i = 0; i < 200; ++i) {
    if (i % 20 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // the workers go to sleep
    std::vector<std::size_t> runs(37);
    each(runs.size(), 2 + i % 7, [&](std::size_t index) { ++runs[index]; }, i % 3 == 0);
    CHECK(runs == std::vector<std::size_t>(37, 1));
  }
}

TEST(what_tasks_wrote_is_seen) {
  std::vector<std::size_t> squares(1000);  // not atomic: the thread sanitizer checks the ordering
  for (int i = 0; i < 20; ++i) {
    each(squares.size(), 4, [&](std::size_t index) { squares[index] = index * index; });
    for (std::size_t index = 0; index < squares.size(); ++index) CHECK(squares[index] == index * index);
    squares.assign(squares.size(), 0);
  }
}

TEST(a_nested_call_runs_on_its_own_thread) {
  std::atomic<int> inner{0};
  std::atomic<bool> strayed{false};
  each(16, 4, [&](std::size_t) {
    const std::thread::id self = std::this_thread::get_id();
    each(10, 4, [&](std::size_t) {
      ++inner;
      if (std::this_thread::get_id() != self) strayed = true;
    });
  });
  CHECK(inner == 160);
  CHECK(!strayed);
}

TEST(a_second_caller_does_not_wait) {
  std::atomic<bool> started{false}, release{false};
  std::thread first([&] {
    each(2, 2, [&](std::size_t) {
      started = true;
      wait_until([&] { return release.load(); });
    });
  });
  wait_until([&] { return started.load(); });
  const std::thread::id self = std::this_thread::get_id();
  std::size_t done = 0;  // needs no lock: one thread
  bool strayed = false;
  each(100, 4, [&](std::size_t) {
    ++done;
    strayed = strayed || std::this_thread::get_id() != self;
  });
  CHECK(done == 100);
  CHECK(!strayed);
  release = true;
  first.join();
}

TEST(many_callers) {
  std::vector<std::thread> callers;
  for (std::size_t caller = 0; caller < 6; ++caller) {
    callers.emplace_back([caller] {
      for (std::size_t i = 0; i < 400; ++i) CHECK(runs_each_once((caller + i) % 20, 2 + static_cast<int>(i % 4)));
    });
  }
  for (std::thread& caller : callers) caller.join();
}

// Jobs much shorter than a wake-up: most workers arrive after their job, and often the next, has ended. The context is
// freed at once, so that the address sanitizer detects a late access; without the sanitizer, `alive` does.
TEST(a_worker_that_wakes_late_finds_nothing) {
  struct Context {
    std::atomic<int> alive{1}, runs{0};
  };
  std::atomic<int> late{0};
  for (int i = 0; i < 5000; ++i) {
    const auto context = std::make_unique<Context>();
    each(2, 2 + i % 7, [&late, c = context.get()](std::size_t) {
      if (c->alive != 1) ++late;
      ++c->runs;
    });
    CHECK(context->runs == 2);
    context->alive = 0;
    if (i % 64 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));  // lets all workers fall asleep
  }
  CHECK(late == 0);
}

sigset_t mask_at_start;  // set in main()

TEST(workers_leave_signals_alone) {
  std::atomic<int> here{0}, open{0}, unnamed{0};
  const std::thread::id self = std::this_thread::get_id();
  each(9, 9, [&](std::size_t) {  // nine threads, so that at least one worker is new
    ++here;
    wait_until([&] { return here == 9; });
    if (std::this_thread::get_id() == self) return;
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    for (const int signal : {SIGINT, SIGTERM, SIGALRM, SIGCHLD, SIGUSR1, SIGPROF}) {
      if (sigismember(&mask, signal) != 1) ++open;
    }
    if (sigismember(&mask, SIGSEGV) != 0) ++open;  // crashes must still be reported
#if defined(__linux__) || defined(__APPLE__)
    char name[16] = "";
    pthread_getname_np(pthread_self(), name, sizeof name);
    if (std::string(name) != "gradstep") ++unnamed;
#endif
  });
  CHECK(open == 0);
  CHECK(unnamed == 0);
  sigset_t now;
  pthread_sigmask(SIG_SETMASK, nullptr, &now);
  for (const int signal : {SIGINT, SIGTERM, SIGALRM, SIGCHLD, SIGUSR1, SIGPROF}) {
    CHECK(sigismember(&now, signal) == sigismember(&mask_at_start, signal));
  }
}

#if defined(__linux__)
TEST(workers_keep_off_the_callers_core) {
  cpu_set_t callers;
  CHECK(sched_getaffinity(0, sizeof callers, &callers) == 0);
  if (CPU_COUNT(&callers) < 2) return;
  const std::thread::id self = std::this_thread::get_id();
  std::atomic<int> here{0}, looked{0}, wrong{0};
  each(3, 3, [&](std::size_t) {
    ++here;
    wait_until([&] { return here == 3; });
    // A caller that has finished gives its core to workers that have not.
    if (std::this_thread::get_id() == self) return wait_until([&] { return looked == 2; });
    cpu_set_t mine;
    pthread_getaffinity_np(pthread_self(), sizeof mine, &mine);
    if (CPU_COUNT(&mine) != CPU_COUNT(&callers) - 1) ++wrong;
    ++looked;
  });
  CHECK(wrong == 0);
}
#endif

// Checks a child: it starts without workers, its pool works, and so does that of a child of its own.
bool child_works() {
  if (worker_count() != 0) return false;
#if defined(__SANITIZE_THREAD__)
  return true;  // the thread sanitizer supports no new threads in a child of a threaded process
#else
  meet(4);
  return worker_count() == 3 && runs_each_once(1000, 4);
#endif
}

TEST(fork_after_use) {
  meet(4);
  CHECK(in_child(child_works));
  CHECK(in_child([] { return child_works() && in_child(child_works) && worker_count() <= 3; }));
  CHECK(runs_each_once(1000, 4));
  CHECK(worker_count() >= 3);
}

TEST(fork_while_another_thread_is_in_a_job) {
  std::atomic<int> started{0};
  std::atomic<bool> release{false};
  std::thread caller([&] {
    each(4, 4, [&](std::size_t) {
      ++started;
      wait_until([&] { return release.load(); });
    });
  });
  wait_until([&] { return started == 4; });
  CHECK(in_child(child_works));
  release = true;
  caller.join();
  CHECK(runs_each_once(1000, 4));
}

// Forks at arbitrary moments of a job, also while the mutex is held.
TEST(fork_while_others_hammer) {
  std::atomic<bool> stop{false};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 2; ++caller) {
    callers.emplace_back([&] {
      while (!stop) each(8, 4, [](std::size_t) {});
    });
  }
  for (int i = 0; i < 40; ++i) CHECK(in_child(child_works));
  stop = true;
  for (std::thread& caller : callers) caller.join();
}

TEST(fork_waits_for_the_guards_of_other_threads) {
  std::atomic<int> begun{0}, ended{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      const gradstep::cpu::NoFork guard;
      ++begun;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      ++ended;
    });
  }
  wait_until([&] { return begun == 3; });
  CHECK(in_child([&] {
    const gradstep::cpu::NoFork guard;  // the child has none of its parent's
    return ended == 3 && in_child([] { return true; });
  }));
  for (std::thread& thread : threads) thread.join();
}

// As a crash handler does, in the thread that called or in a worker.
TEST(fork_does_not_wait_for_its_own_job) {
  const gradstep::cpu::NoFork outer;
  {
    const gradstep::cpu::NoFork inner;
    CHECK(in_child([] { return in_child([] { return true; }); }));
  }
  std::atomic<int> started{0}, forked{0};
  each(4, 4, [&](std::size_t) {
    ++started;
    wait_until([&] { return started == 4; });
    if (in_child([] { return in_child([] { return true; }); })) ++forked;
  });
  CHECK(forked == 4);
}

// Guards begin and end, and two threads fork: nobody waits for ever, and no child finds a guard half-way.
TEST(forks_and_guards_take_turns) {
  std::atomic<bool> stop{false};
  std::atomic<int> first{0}, second{0};
  std::thread guarded([&] {
    while (!stop) {
      const gradstep::cpu::NoFork guard;
      ++first;
      std::this_thread::yield();
      ++second;
    }
  });
  const auto fork_often = [&] {
    for (int i = 0; i < 20; ++i) CHECK(in_child([&] { return first == second; }));
  };
  std::thread other(fork_often);
  fork_often();
  other.join();
  stop = true;
  guarded.join();
}

// A tree of control groups, as under /sys/fs/cgroup, in a directory of its own.
class FakeTree {
 public:
  FakeTree() {
    std::string name = (fs::temp_directory_path() / "gradstep-cgroup-XXXXXX").string();
    CHECK(mkdtemp(name.data()) != nullptr);
    dir_ = name;
  }
  ~FakeTree() { fs::remove_all(dir_); }

  void write(const std::string& path, const std::string& text) const {
    fs::create_directories((dir_ / path).parent_path());
    std::ofstream(dir_ / path) << text << '\n';
  }
  void group_v1(const std::string& path, const std::string& quota, const std::string& period) const {
    write(path + "/cpu.cfs_quota_us", quota);
    write(path + "/cpu.cfs_period_us", period);
  }
  int quota() const { return gradstep::cpu::quota_cores((dir_ / "self").string(), (dir_ / "cgroup").string()); }

 private:
  fs::path dir_;
};

// The quota for a root group whose cpu.max has this text.
int quota_of(const std::string& cpu_max) {
  const FakeTree tree;
  tree.write("cgroup/cpu.max", cpu_max);
  return tree.quota();
}

TEST(quota_is_read_and_rounded_up) {
  CHECK(quota_of("max 100000") == 0);
  CHECK(quota_of("100000 100000") == 1);
  CHECK(quota_of("100001 100000") == 2);
  CHECK(quota_of("250000 100000") == 3);
  CHECK(quota_of("1000 100000") == 1);
  CHECK(quota_of("6400000 100000") == 64);
  CHECK(quota_of("9223372036854775807 1") == 2147483647);
}

TEST(quota_survives_nonsense) {
  for (const char* text : {"", "max", "100000", "100000 0", "-1 100000", "0 100000", "100000 -5", "x y",
                           "99999999999999999999999 100000"}) {
    CHECK(quota_of(text) == 0);
  }
  const FakeTree empty;
  CHECK(empty.quota() == 0);
  for (const char* text : {"", ":", "::", "0:", "0::", "0::/", "no colons", "1:cpu", "0::/../..", "0:::/"}) {
    const FakeTree tree;
    tree.write("self", text);
    CHECK(tree.quota() == 0);
  }
}

TEST(quota_v2_of_the_group_and_its_ancestors) {
  const FakeTree tree;
  tree.write("self", "0::/a/b/c");
  tree.write("cgroup/a/b/c/cpu.max", "max 100000");
  CHECK(tree.quota() == 0);
  tree.write("cgroup/a/cpu.max", "800000 100000");
  CHECK(tree.quota() == 8);
  tree.write("cgroup/a/b/cpu.max", "300000 100000");
  CHECK(tree.quota() == 3);
  tree.write("cgroup/a/b/c/cpu.max", "150000 100000");
  CHECK(tree.quota() == 2);
  tree.write("cgroup/a/other/cpu.max", "100000 100000");  // not an ancestor
  CHECK(tree.quota() == 2);
  tree.write("cgroup/cpu.max", "100000 100000");
  CHECK(tree.quota() == 1);
}

TEST(quota_in_a_container_that_sees_only_its_root) {
  const FakeTree tree;
  tree.write("self", "0::/system.slice/docker-0123.scope");  // the group's path on the host
  tree.write("cgroup/cpu.max", "200000 100000");
  CHECK(tree.quota() == 2);
}

TEST(quota_v1) {
  const FakeTree tree;
  tree.write("self", "5:memory:/m\n4:cpuset:/s\n3:cpuacct,cpu:/a/b\n1:name=systemd:/x:y\n0::/a");
  tree.group_v1("cgroup/cpu/a/b", "-1", "100000");
  tree.group_v1("cgroup/cpu/s", "100000", "100000");  // the group of cpuset, not of cpu
  CHECK(tree.quota() == 0);
  tree.group_v1("cgroup/cpu/a", "350000", "100000");
  CHECK(tree.quota() == 4);
  tree.group_v1("cgroup/cpu", "25000", "50000");
  CHECK(tree.quota() == 1);
}

TEST(quota_v1_without_the_link) {
  for (const char* mount : {"cgroup/cpu,cpuacct", "cgroup/cpuacct,cpu"}) {
    const FakeTree tree;
    tree.write("self", "3:cpu,cpuacct:/a");
    tree.group_v1(std::string(mount) + "/a", "500000", "100000");
    CHECK(tree.quota() == 5);
  }
}

TEST(at_least_one_core_is_available) {
  CHECK(gradstep::cpu::available_cores() >= 1);
  CHECK(gradstep::cpu::available_cores() <= 1 << 20);
}

}  // namespace

// The last test is the return from main with sleeping workers: the process must end.
int main() {
  alarm(120);  // turns a hang into a failure
  pthread_sigmask(SIG_SETMASK, nullptr, &mask_at_start);
  return check::run_tests();
}
