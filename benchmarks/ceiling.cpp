// In-place passes over several streams that only add: the speed that memory allows a step that reads and writes as many
// streams. They share no loop, thread or flag with gradstep. benchmarks/ceiling.py compiles them for the machine that
// runs them and describes their purpose.
#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <utility>
#include <vector>

namespace {

constexpr std::int64_t kLine = 64 / sizeof(float);  // elements per cache line
constexpr std::int64_t kDistance = 2048 / sizeof(float);

// Adds the first stream to each of the others. If kLines > 0, that many cache lines of each stream are prefetched at a
// time.
template <int kLines, std::size_t... kWritten>
void add(float* const* streams, std::int64_t size, std::index_sequence<kWritten...>) {
  const float* __restrict read = streams[0];
  const auto part = [=](std::int64_t begin, std::int64_t end, auto* __restrict... written) {
    for (std::int64_t i = begin; i < end; ++i) ((written[i] += read[i]), ...);
  };
  std::int64_t begin = 0;
  if constexpr (kLines > 0) {
    constexpr std::int64_t kRun = kLines * kLine;
    for (; begin + kRun + kDistance <= size; begin += kRun) {
      for (int line = 0; line < kLines; ++line) {
        __builtin_prefetch(read + begin + kDistance + line * kLine);
        (__builtin_prefetch(streams[1 + kWritten] + begin + kDistance + line * kLine), ...);
      }
      part(begin, begin + kRun, streams[1 + kWritten]...);
    }
  }
  part(begin, size, streams[1 + kWritten]...);
}

template <int kLines>
void add(float* const* streams, int written, std::int64_t size) {
  switch (written) {
    case 1:
      return add<kLines>(streams, size, std::make_index_sequence<1>());
    case 2:
      return add<kLines>(streams, size, std::make_index_sequence<2>());
    case 3:
      return add<kLines>(streams, size, std::make_index_sequence<3>());
    case 4:
      return add<kLines>(streams, size, std::make_index_sequence<4>());
  }
}

// Linux may start threads on their creator's core and leave them there for milliseconds while other cores are idle.
void keep_off_this_core(std::thread& thread) {
#if defined(__linux__)
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores) != 0) return;
  CPU_CLR(static_cast<std::size_t>(sched_getcpu()), &cores);
  if (CPU_COUNT(&cores) > 0) pthread_setaffinity_np(thread.native_handle(), sizeof cores, &cores);
#else
  static_cast<void>(thread);
#endif
}

}  // namespace

// Makes `count` passes over one stream that is read and `written` streams (1 to 4) that are read and written, of `size`
// elements each; every thread has a part. `lines` is 0, 1 or 8. A pass begins when all threads have finished the last
// one. Returns the seconds from the arrival of all threads to the end of the last pass.
extern "C" double passes(float* const* streams, int written, std::int64_t size, int threads, int lines, int count) {
  using Time = std::chrono::steady_clock;
  std::atomic<int> arrived{0};
  const auto wait_for_all = [&](int meeting) {
    ++arrived;
    while (arrived < meeting * threads) {
    }
  };
  Time::time_point begin, end;
  const auto work = [&](int thread) {
    const auto cut = [=](int at) { return at == threads ? size : size / kLine * at / threads * kLine; };
    const std::int64_t elements = cut(thread + 1) - cut(thread);
    std::vector<float*> part(streams, streams + 1 + written);
    for (float*& stream : part) stream += cut(thread);
    wait_for_all(1);
    if (thread == 0) begin = Time::now();
    for (int pass = 1; pass <= count; ++pass) {
      if (lines == 0) add<0>(part.data(), written, elements);
      if (lines == 1) add<1>(part.data(), written, elements);
      if (lines == 8) add<8>(part.data(), written, elements);
      wait_for_all(1 + pass);
    }
    if (thread == 0) end = Time::now();
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) {
    others.emplace_back(work, thread);
    keep_off_this_core(others.back());
  }
  work(0);
  for (std::thread& other : others) other.join();
  return std::chrono::duration<double>(end - begin).count();
}
