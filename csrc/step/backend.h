#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "job/job.h"
#include "step/plan.h"

namespace gradstep::step {

// What the scalars of a step are made of: options of groups, and of each tensor its group and its clock.
struct Times {
  std::int64_t taken;  // steps of the optimizer
  std::vector<rules::Clock> clocks;
  std::vector<std::uint32_t> groups;
  std::vector<std::vector<double>> options;
};

// What runs the steps of one optimizer: a processor, or a device.
class Backend {
 public:
  virtual ~Backend() = default;

  // About how many elements a task of a step with `elements` should hold.
  virtual std::int64_t grain(std::int64_t elements) const = 0;

  // A tensor was added, or its gradient lies otherwise than the last did: this is how its streams lie.
  virtual void lay_out(std::size_t, const Job&, const Layout&) {}

  // The plan by which run() will go from now on.
  virtual void take(const Plan&) {}

  // Runs the jobs of a plan's tensors, those without an update left out. `bytes` counts what the others read and write,
  // as if all were stored in the compute type. Where it throws, nothing was written, but where a device fails on the
  // way.
  virtual void run(const Plan& plan, const Job* jobs, std::int64_t bytes) = 0;

  // The same of a tensor's gradient alone, as clip() is to go along it.
  virtual void lay_out_gradient(std::size_t, const Job&, const Layout&) {}

  // The norm of the gradients of all jobs with an update, and what those of this step are to be multiplied by to keep
  // it at the limit; 1 where run() knows more. Throws as run() does. A limit of NaN: no more of this.
  virtual void set_limit(double limit) = 0;
  virtual double clip(const Plan& plan, const Job* jobs, std::int64_t bytes) = 0;
  virtual double norm() = 0;  // that clip() found

  // Whether it keeps the times itself, because a step may be replayed without a call, and whether the next run needs it
  // to. Then run() takes of updates what is done, not their scalars, and advances the clocks.
  virtual bool holds() const { return false; }
  virtual bool must_hold() const { return false; }
  // To hand them over and get them back; changed options are set alone.
  virtual void hold(const Times&) {}
  virtual void read(Times&) {}
  virtual void set_options(int, const std::vector<double>&) {}
};

}  // namespace gradstep::step
