#include "step/on_cpu.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <vector>

#include "base/ieee_mode.h"
#include "cpu/isa.h"
#include "cpu/job.h"
#include "cpu/pool.h"
#include "cpu/prefetch_choice.h"
#include "cpu/threads.h"
#include "job/norm.h"

namespace gradstep::step {
namespace {

// Steps that move fewer bytes stay on the calling thread. With awake workers, two threads of an EPYC (Zen 4) were
// faster than one from 260 KB (SGD) and 150 KB (Adam) on.
constexpr std::int64_t kWorthSharing = 256 << 10;

// Steps that move at least as many wake sleeping workers. There two threads were faster from 7 MB (SGD) and 8 MB (Adam)
// on.
constexpr std::int64_t kWorthWaking = 8 << 20;

// Tells whether steps follow one another so fast that a worker woken for one is awake for the next. All optimizers and
// threads share it; it changes times, never results.
class Pace {
 public:
  // A step begins; true if it and the step before it each began within a worker's patience after another. Two
  // optimizers that are stepped together now and then are not enough.
  bool begin() {
    const bool soon = now() - ended_.load(std::memory_order_relaxed) < cpu::kPatience;
    const int in_a_row = soon ? std::min(in_a_row_.load(std::memory_order_relaxed) + 1, 2) : 0;
    in_a_row_.store(in_a_row, std::memory_order_relaxed);
    return in_a_row == 2;
  }
  void end() { ended_.store(now(), std::memory_order_relaxed); }

 private:
  using Time = std::chrono::steady_clock::duration;
  static Time now() { return std::chrono::steady_clock::now().time_since_epoch(); }

  std::atomic<Time> ended_{Time::min() / 2};
  std::atomic<int> in_a_row_{0};
};

Pace pace;

// The last update that a task met, for most have one, and its kernels.
struct Last {
  const Update* update = nullptr;
  const cpu::Kernels* kernels = nullptr;
};

// visit(job, piece, last) for every piece of a plan whose tensor takes part, by so many threads.
template <class Visit>
void share(const Plan& plan, const Job* jobs, int threads, bool wake, const Visit& visit) noexcept {
  struct Step {
    const Plan& plan;
    const Job* jobs;
    const Visit& visit;
  } step{plan, jobs, visit};
  const auto task = [](void* context, std::size_t index) {
    const IeeeMode ieee;
    const auto& [the_plan, the_jobs, the_visit] = *static_cast<const Step*>(context);
    Last last;
    for (std::size_t i = the_plan.tasks[index]; i < the_plan.tasks[index + 1]; ++i) {
      const Piece& piece = the_plan.pieces[i];
      const Job& job = the_jobs[piece.tensor];
      if (job.update != nullptr) the_visit(job, piece, last);
    }
  };
  cpu::parallel_for(plan.task_count(), threads, wake, task, &step);
}

int threads_for(std::int64_t bytes) { return cpu::shares_all() || bytes >= kWorthSharing ? cpu::threads() : 1; }
bool wakes_for(std::int64_t bytes) { return cpu::shares_all() || bytes >= kWorthWaking; }

class OnCpu : public Backend {
 public:
  // Few enough that threads end together, enough that claiming a task costs nothing (20 ns, where 4096 elements take 1
  // us and more), and that few begin with memory that nobody asked for ahead.
  std::int64_t grain(std::int64_t elements) const override {
    return std::clamp<std::int64_t>(elements / 256, 4096, 65536);
  }

  void run(const Plan& plan, const Job* jobs, std::int64_t bytes) override {
    const int threads = threads_for(bytes);
    const bool fast = threads > 1 && pace.begin();
    const auto visit = [prefetches = cpu::prefetches()](const Job& job, const Piece& piece, Last& last) {
      if (job.update != last.update) last = {job.update, &cpu::find_kernels(job.update->key)};
      cpu::run(job, *last.kernels, piece.begin, piece.end, prefetches);
    };
    share(plan, jobs, threads, fast || wakes_for(bytes), visit);
    if (threads > 1) pace.end();
  }

  void set_limit(double limit) override { limit_ = limit; }

  double clip(const Plan& plan, const Job* jobs, std::int64_t bytes) override {
    of_chunks_.resize(plan.first_chunk.back());
    of_tensors_.resize(plan.first_chunk.size() - 1);
    const auto visit = [&, prefetches = cpu::prefetches()](const Job& job, const Piece& piece, Last&) {
      double* to = &of_chunks_[plan.first_chunk[piece.tensor]] + piece.begin / kChunk;
      for (std::int64_t begin = piece.begin; begin < piece.end; begin += kChunk) {
        *to++ = cpu::sum_of_squares(job, begin, std::min(begin + kChunk, piece.end), prefetches);
      }
    };
    share(plan, jobs, threads_for(bytes), wakes_for(bytes), visit);
    const IeeeMode ieee;
    return add_up(plan, jobs);
  }

  double norm() override { return norm_; }

 private:
  // Apart from its caller, as all arithmetic in another floating-point mode.
  [[gnu::noinline]] double add_up(const Plan& plan, const Job* jobs) {
    for (std::size_t i = 0; i < of_tensors_.size(); ++i) {
      const std::size_t first = plan.first_chunk[i], count = plan.first_chunk[i + 1] - first;
      of_tensors_[i] = jobs[i].update == nullptr ? 0 : sum(of_chunks_.data() + first, count);
    }
    norm_ = std::sqrt(sum(of_tensors_.data(), of_tensors_.size()));
    return clip_factor(norm_, limit_);
  }

  double limit_ = 0, norm_ = 0;
  std::vector<double> of_chunks_, of_tensors_;  // sums of squares
};

}  // namespace

std::unique_ptr<Backend> on_cpu() { return std::make_unique<OnCpu>(); }

}  // namespace gradstep::step
