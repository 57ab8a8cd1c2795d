#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "cuda/args.h"
#include "cuda/runtime.h"
#include "step/backend.h"

namespace gradstep::step {

// The progress of an optimizer on a GPU. From the first step on it is stored on the device, whose kernels advance it;
// the host counts steps too, as long as it can. The caller makes the device current.
class CudaState {
 public:
  void add_tensor(const TensorInfo& info, const rules::Clock& clock);
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const std::vector<std::uint32_t>& groups() const { return groups_; }
  // Sets the number of elements that steps update. Returns whether it was another.
  bool set_size(std::size_t tensor, std::int64_t size) { return std::exchange(tensors_[tensor].size, size) != size; }

  // The state on the device. The first call uploads it.
  const cuda::DeviceState& on_device();

  // These synchronize with the device if the state is there.
  StepState get() const;
  void set(const StepState& state);

  // The number of steps taken. Synchronizes if the host does not know it.
  std::int64_t step_count();
  // begin_step() precedes a step's launches; end_step() follows them if the host knows that they count the step.
  // Between the two calls the count is unknown.
  void begin_step() { before_ = std::exchange(taken_, std::nullopt); }
  void end_step() {
    if (before_) know(*before_ + 1);
  }
  // Steps may be replayed without a call from now on.
  void expect_replays() { is_replayed_ = true; }

 private:
  void know(std::int64_t taken) {
    if (!is_replayed_) taken_ = taken;
  }

  std::vector<TensorInfo> tensors_;
  std::vector<std::uint32_t> groups_;  // of the tensors
  StepState first_;                    // the state before it is uploaded
  cuda::Memory memory_;
  cuda::DeviceState device_{};  // pointers into memory_
  std::optional<std::int64_t> taken_ = 0, before_;
  bool is_replayed_ = false;
};

}  // namespace gradstep::step
