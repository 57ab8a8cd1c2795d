#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "exec/norm.h"
#include "exec/tensor_job.h"
#include "step/catalog.h"

namespace gradstep::step {

// Where the steps of an optimizer have come to.
struct StepState {
  std::int64_t taken = 0;            // steps
  std::vector<rules::Clock> clocks;  // of each tensor
};

// What of a tensor never changes.
struct TensorInfo {
  std::int64_t size;
  int group;
  Compute compute;
};

// What runs the steps of one optimizer, a processor or a device, and owns what they go by: options, layouts, clocks.
class Backend {
 public:
  virtual ~Backend() = default;

  // Options of a group, the next one or one that is known, and of the pass over gradients: from the next step on. Where
  // they throw, nothing has changed.
  virtual void set_options(std::size_t group, const GroupOptions& options) = 0;
  virtual void set_gradient_pass(const PassOptions& options) = 0;

  // Adds a tensor, with its clock before the first step; none after a step.
  virtual void add_tensor(const TensorInfo& info, const rules::Clock& clock) = 0;
  // Says where a tensor's streams are, but for the gradient, and how all lie; and, where there is a pass over
  // gradients, how the gradient lies for the norm, which goes along it in the order of its indices.
  virtual void set_layout(std::size_t tensor, std::byte* const* streams, Layout layout, Layout gradient) = 0;

  // Takes a step with these gradients, one for each tensor; null: the tensor takes no part. Where it throws, nothing
  // was written and the step is not counted, but where a device fails on the way.
  virtual void run(std::byte* const* gradients) = 0;
  // What the pass of the last run found. Of use only where that had one.
  virtual GradientPass gradient_pass() = 0;
  // The pass alone, asked for nothing but the norm.
  virtual double norm(std::byte* const* gradients) = 0;

  virtual StepState state() = 0;
  virtual void set_state(const StepState& state) = 0;
  virtual std::int64_t step_count() = 0;  // state().taken, without waiting where that is known

  // Whether a step may be taken again without a call, so that what it launches cannot change any more.
  virtual bool is_captured() const = 0;
};

}  // namespace gradstep::step
