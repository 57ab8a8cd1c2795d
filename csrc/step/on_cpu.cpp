#include "step/on_cpu.h"

#include <algorithm>
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

// From so many bytes on a step is worth sharing with workers that are awake (two threads of an EPYC, Zen 4: SGD was
// faster from 260 KB on, Adam from 150 KB),
constexpr std::int64_t kWorthSharing = 256 << 10;
// and from so many on with those that sleep, which take 10 to 50 us to come (SGD was faster from 7 MB on, Adam from 8).
constexpr std::int64_t kWorthWaking = 8 << 20;

// visit(job, piece) for every piece of a plan whose tensor takes part, by all threads.
template <class Visit>
void share(const Plan& plan, const Job* jobs, std::int64_t bytes, const Visit& visit) noexcept {
  struct Step {
    const Plan& plan;
    const Job* jobs;
    const Visit& visit;
  } step{plan, jobs, visit};
  const auto task = [](void* context, std::size_t index) {
    const IeeeMode ieee;
    const auto& [the_plan, the_jobs, the_visit] = *static_cast<const Step*>(context);
    for (std::size_t i = the_plan.tasks[index]; i < the_plan.tasks[index + 1]; ++i) {
      const Piece& piece = the_plan.pieces[i];
      const Job& job = the_jobs[piece.tensor];
      if (job.update != nullptr) the_visit(job, piece);
    }
  };
  const bool always = cpu::shares_all();
  const int threads = always || bytes >= kWorthSharing ? cpu::threads() : 1;
  cpu::parallel_for(plan.task_count(), threads, always || bytes >= kWorthWaking, task, &step);
}

AnyKernel any(cpu::Kernel kernel) { return reinterpret_cast<AnyKernel>(kernel); }

class OnCpu : public Backend {
 public:
  // Few enough that threads end together, enough that claiming a task costs nothing (20 ns, where 4096 elements take 1
  // us and more), and that few begin with memory that nobody asked for ahead.
  std::int64_t grain(std::int64_t elements) const override {
    return std::clamp<std::int64_t>(elements / 256, 4096, 65536);
  }

  AnyKernel find_kernel(const rules::Key& key) const override { return any(cpu::find_kernel(key)); }

  void run(const Plan& plan, const Job* jobs, std::int64_t bytes) override {
    share(plan, jobs, bytes, [prefetches = cpu::prefetches()](const Job& job, const Piece& piece) {
      cpu::run(job, piece.begin, piece.end, prefetches);
    });
  }

  void set_limit(double limit) override { limit_ = limit; }

  double clip(const Plan& plan, const Job* jobs, std::int64_t bytes) override {
    of_chunks_.resize(plan.first_chunk.back());
    of_tensors_.resize(plan.first_chunk.size() - 1);
    share(plan, jobs, bytes, [&, prefetches = cpu::prefetches()](const Job& job, const Piece& piece) {
      double* to = &of_chunks_[plan.first_chunk[piece.tensor]] + piece.begin / kChunk;
      for (std::int64_t begin = piece.begin; begin < piece.end; begin += kChunk) {
        *to++ = cpu::sum_of_squares(job, begin, std::min(begin + kChunk, piece.end), prefetches);
      }
    });
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
