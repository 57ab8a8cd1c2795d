#include "step/on_cpu.h"

#include <algorithm>

#include "base/ieee_mode.h"
#include "cpu/isa.h"
#include "cpu/job.h"
#include "cpu/pool.h"
#include "cpu/threads.h"

namespace gradstep::step {
namespace {

// From here on a step is worth sharing with workers that are still awake from the last,
constexpr std::int64_t kWorthSharing = 16384;
// and from here on with those that sleep: one needs some 10 to 50 us to come.
constexpr std::int64_t kWorthWaking = 65536;

class OnCpu : public Backend {
 public:
  // Few enough that threads end together, enough that claiming a task costs nothing (20 ns, where 4096 elements take 1
  // us and more), and that few begin with memory that nobody asked for ahead.
  std::int64_t grain(std::int64_t elements) const override {
    return std::clamp<std::int64_t>(elements / 256, 4096, 65536);
  }

  AnyKernel find_kernel(const rules::Key& key) const override { return any(cpu::find_kernel(key)); }

  void run(const Plan& plan, const Job* jobs, std::int64_t elements) override { run_jobs(plan, jobs, elements); }

  static AnyKernel any(cpu::Kernel kernel) { return reinterpret_cast<AnyKernel>(kernel); }

  static void run_jobs(const Plan& plan, const Job* jobs, std::int64_t elements) noexcept {
    struct Step {
      const Plan& plan;
      const Job* jobs;
    } step{plan, jobs};
    const auto task = [](void* context, std::size_t index) {
      const IeeeMode ieee;
      const auto& [the_plan, the_jobs] = *static_cast<const Step*>(context);
      for (std::size_t i = the_plan.tasks[index]; i < the_plan.tasks[index + 1]; ++i) {
        const Piece& piece = the_plan.pieces[i];
        const Job& job = the_jobs[piece.tensor];
        if (job.update != nullptr) cpu::run(job, piece.begin, piece.end);
      }
    };
    const int threads = elements < kWorthSharing ? 1 : cpu::threads();
    cpu::parallel_for(plan.task_count(), threads, elements >= kWorthWaking, task, &step);
  }
};

}  // namespace

std::unique_ptr<Backend> on_cpu() { return std::make_unique<OnCpu>(); }

void run_additions(const std::vector<Array>& streams, std::int64_t size) {
  Update addition{};
  addition.key.compute = compute_of(streams[0].dtype);
  const auto states = static_cast<int>(streams.size()) - kFirstState;
  addition.kernel = OnCpu::any(cpu::find_addition(states, addition.key.compute));
  Job job;
  job.update = &addition;
  for (std::size_t s = 0; s < streams.size(); ++s) job.streams[s] = streams[s].data;
  OnCpu::run_jobs(make_plan(&size, 1, OnCpu().grain(size)), &job, size);
}

}  // namespace gradstep::step
