#include "step/run.h"

#include "cpu/ieee_mode.h"
#include "cpu/isa.h"
#include "cpu/pool.h"
#include "cpu/threads.h"

namespace gradstep::step {
namespace {

// From here on a step is worth sharing with workers that are still awake from the last,
constexpr std::int64_t kWorthSharing = 16384;
// and from here on with those that sleep: one needs some 10 to 50 us to come.
constexpr std::int64_t kWorthWaking = 65536;

}  // namespace

void run_jobs(const Plan& plan, const cpu::Job* jobs, std::int64_t elements) noexcept {
  struct Step {
    const Plan& plan;
    const cpu::Job* jobs;
  } step{plan, jobs};
  const auto task = [](void* context, std::size_t index) {
    const cpu::IeeeMode ieee;
    const auto& [the_plan, the_jobs] = *static_cast<const Step*>(context);
    for (std::size_t i = the_plan.tasks[index]; i < the_plan.tasks[index + 1]; ++i) {
      const Piece& piece = the_plan.pieces[i];
      const cpu::Job& job = the_jobs[piece.tensor];
      if (job.update != nullptr) cpu::run(job, piece.begin, piece.end);
    }
  };
  const int threads = elements < kWorthSharing ? 1 : cpu::threads();
  cpu::parallel_for(plan.task_count(), threads, elements >= kWorthWaking, task, &step);
}

void run_additions(const std::vector<Array>& streams, std::int64_t size) {
  static constexpr std::int64_t kNoScalars = 0;
  const Compute compute = compute_of(streams[0].dtype);
  const cpu::Update addition{cpu::find_addition(static_cast<int>(streams.size()) - 2, compute), &kNoScalars, compute};
  cpu::Job job;
  job.update = &addition;
  for (std::size_t s = 0; s < streams.size(); ++s) job.streams[s] = streams[s].data;
  run_jobs(make_plan(&size, 1, grain(size)), &job, size);
}

}  // namespace gradstep::step
