#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "exec/norm.h"
#include "exec/tensor_job.h"
#include "step/array.h"
#include "step/catalog.h"

namespace gradstep::step {

// The progress of an optimizer: everything that changes from step to step besides the arrays.
struct StepState {
  std::int64_t taken = 0;            // the number of steps
  std::vector<rules::Clock> clocks;  // of each tensor
};

// A tensor as a part of a whole: the index of its first element there, a multiple of kPart, and the whole's size.
struct Part {
  std::int64_t first, whole;
};

// The sums of the squares of all chunks of gradients, tensor by tensor, and the first gradient that is not finite.
struct Squares {
  std::vector<double> of_chunks;
  Position nonfinite = kNowhere;
};

struct TensorInfo {
  std::int64_t size;  // elements that steps update: all, or those of a row gradient
  int group;
  Compute compute;
};

// Is called with the number of buckets that a step has updated.
using Stepped = std::function<void(std::size_t count)>;

// What a run is asked for besides the update.
struct RunOptions {
  double grad_scale = 1;  // divides the gradients
  // Gradients are stored as they are computed with, and set to zero in the same pass, also if the step is skipped.
  bool clears = false;
  // The norms of each tensor are taken; layouts are then in the order of the indices.
  bool measures = false;
  // Of the wholes, where tensors are parts and there is a gradient pass.
  const Squares* squares = nullptr;
  // Called after each bucket. What it throws is thrown at the end of the step, which is taken wholly; it is not called
  // again then.
  const Stepped* stepped = nullptr;
};

// Runs the steps of one optimizer on a processor or a device. It owns the options, the layouts and the clocks.
class Backend {
 public:
  virtual ~Backend() = default;

  // Set the options of a group, a new one or an existing one, and those of the gradient pass, for all later steps. If
  // they throw, nothing has changed.
  virtual void set_options(std::size_t group, const GroupOptions& options) = 0;
  virtual void set_gradient_pass(const PassOptions& options) = 0;

  // Makes room for so many tensors.
  virtual void reserve(std::size_t) {}
  // Adds a tensor with its initial clock. Not allowed after a step.
  virtual void add_tensor(const TensorInfo& info, const rules::Clock& clock) = 0;
  // Sets a tensor's streams, except the gradient, the layout of all of them, and the number of elements that steps
  // update. If there is a gradient pass, `gradient` is the layout that the norm uses: in the order of the indices.
  virtual void set_layout(std::size_t tensor, std::byte* const* streams, Layout layout, Layout gradient,
                          std::int64_t size) = 0;

  // Runs a step with one gradient per tensor; null: the tensor takes no part. If it throws, nothing was written and the
  // step is not counted, unless a device failed during the step, or `stepped` threw.
  virtual void run(std::byte* const* gradients, const RunOptions& options) = 0;
  // The result of the last run's gradient pass; undefined if that run had none.
  virtual GradientPass gradient_pass() = 0;
  // The norms that the last run measured, of each tensor; empty if it measured none or was skipped.
  virtual std::vector<TensorNorms> norms() = 0;
  // Runs only the gradient pass, for the norm.
  virtual double norm(std::byte* const* gradients) = 0;
  // Makes the tensors parts of wholes, which steps update bucket by bucket (see make_plan). Throws where the backend
  // has none.
  virtual void set_parts(std::vector<Part> parts, std::vector<std::int64_t> buckets) = 0;
  // Runs only the sums of the gradient pass; `nonfinite` is a place in a whole.
  virtual Squares squares(std::byte* const* gradients) = 0;

  // Memory for arrays of the backend. It may be written by the work of a later step, not by the caller.
  virtual std::shared_ptr<std::byte> allocate(std::size_t bytes) = 0;
  // Computes `count` rows of sums of a gradient's values.
  virtual void sum_rows(const Array& values, Compute compute, const RowSums& sums, std::int64_t count) = 0;

  virtual StepState state() = 0;
  virtual void set_state(const StepState& state) = 0;
  virtual std::int64_t step_count() = 0;  // state().taken, without synchronization if it is known

  // Whether a step has been captured, so that it may be replayed without a call and its launches can no longer change.
  virtual bool is_captured() const = 0;
};

}  // namespace gradstep::step
