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

// Where the steps of an optimizer on a GPU have come to. From the first step on this lies on the device, whose launches
// advance it; the host counts steps along as long as it can. The caller makes the device the current one.
class CudaState {
 public:
  void add_tensor(const TensorInfo& info, const rules::Clock& clock);
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const std::vector<std::uint32_t>& groups() const { return groups_; }

  // Where it lies on the device. The first call puts it there.
  const cuda::DeviceState& on_device();

  // These wait for the device, if it lies there.
  StepState get() const;
  void set(const StepState& state);

  // The steps taken. Waits for the device where the host has lost count.
  std::int64_t step_count();
  // Before a step's launches, and after them where the host knows that they count it; in between it does not.
  void begin_step() { before_ = std::exchange(taken_, std::nullopt); }
  void end_step() {
    if (before_) know(*before_ + 1);
  }
  // From now on steps may be taken without a call.
  void expect_replays() { is_replayed_ = true; }

 private:
  void know(std::int64_t taken) {
    if (!is_replayed_) taken_ = taken;
  }

  std::vector<TensorInfo> tensors_;
  std::vector<std::uint32_t> groups_;  // of the tensors
  StepState first_;                    // what goes to the device
  cuda::Memory memory_;
  cuda::DeviceState device_{};  // in it
  std::optional<std::int64_t> taken_ = 0, before_;
  bool is_replayed_ = false;
};

}  // namespace gradstep::step
