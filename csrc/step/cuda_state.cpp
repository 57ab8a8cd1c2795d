#include "step/cuda_state.h"

#include <cstring>

namespace gradstep::step {

void CudaState::add_tensor(const TensorInfo& info, const rules::Clock& clock) {
  tensors_.push_back(info);
  groups_.push_back(static_cast<std::uint32_t>(info.group));
  first_.clocks.push_back(clock);
}

const cuda::DeviceState& CudaState::on_device() {
  if (memory_.data() != nullptr) return device_;
  const std::size_t tensors = tensors_.size();
  std::vector<Compute> computes;
  for (const TensorInfo& tensor : tensors_) computes.push_back(tensor.compute);

  // Sorted by decreasing alignment.
  const std::size_t steps = tensors * cuda::kMaxStep, clocks = tensors * sizeof(rules::Clock);
  const std::size_t groups = tensors * sizeof(std::uint32_t), bytes_of_computes = tensors * sizeof(Compute);
  const std::size_t size = steps + clocks + sizeof(std::int64_t) + sizeof(GradientPass) + groups + bytes_of_computes;
  cuda::Memory memory(size);
  cuda::DeviceState device{};
  device.steps = memory.data();
  device.clocks = reinterpret_cast<rules::Clock*>(device.steps + steps);
  device.taken = reinterpret_cast<std::int64_t*>(device.steps + steps + clocks);
  device.pass = reinterpret_cast<GradientPass*>(device.taken + 1);
  device.groups = reinterpret_cast<const std::uint32_t*>(device.pass + 1);
  device.computes = reinterpret_cast<const Compute*>(device.groups + tensors);

  std::vector<std::byte> image(size);
  const auto put = [&](const void* there, const void* from, std::size_t bytes) {
    if (bytes > 0) std::memcpy(image.data() + (static_cast<const std::byte*>(there) - memory.data()), from, bytes);
  };
  put(device.clocks, first_.clocks.data(), clocks);
  put(device.taken, &first_.taken, sizeof first_.taken);
  put(device.groups, groups_.data(), groups);
  put(device.computes, computes.data(), bytes_of_computes);
  cuda::copy_to_device(memory.data(), image.data(), size);
  memory_ = std::move(memory);
  device_ = device;
  return device_;
}

StepState CudaState::get() const {
  if (memory_.data() == nullptr) return first_;
  cuda::wait_for_device();
  StepState state{0, std::vector<rules::Clock>(tensors_.size())};
  cuda::copy_to_host(state.clocks.data(), device_.clocks, state.clocks.size() * sizeof(rules::Clock));
  cuda::copy_to_host(&state.taken, device_.taken, sizeof state.taken);
  return state;
}

void CudaState::set(const StepState& state) {
  if (memory_.data() == nullptr) {
    first_ = state;
  } else {
    cuda::wait_for_device();  // steps in flight still use the old state
    cuda::copy_to_device(device_.clocks, state.clocks.data(), state.clocks.size() * sizeof(rules::Clock));
    cuda::copy_to_device(device_.taken, &state.taken, sizeof state.taken);
  }
  know(state.taken);
}

std::int64_t CudaState::step_count() {
  if (taken_) return *taken_;
  std::int64_t taken = 0;
  cuda::wait_for_device();
  cuda::copy_to_host(&taken, device_.taken, sizeof taken);
  know(taken);
  return taken;
}

}  // namespace gradstep::step
