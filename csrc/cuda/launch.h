#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/args.h"

namespace gradstep::cuda {

// The tensors of one step that have the same key.
struct Work {
  rules::Key key;
  bool stored;                        // whether something is stored in another type
  std::vector<std::byte*> gradients;  // of all tensors; null: it has another key, or takes no part
  const std::size_t* first_chunk;     // of each tensor, and one more
  const TensorDesc* descs;            // on the device, as are
  const Chunk* chunks;
  const std::byte* steps;
  const GradientPass* pass;
  void* stream;
  bool loads = false;  // the kernels, in place of launching them
};

// One launch for up to kMany tensors. They throw std::runtime_error where CUDA fails. Each is compiled by itself, for
// it takes minutes.
void launch_native_float(const Work& work);
void launch_native_double(const Work& work);
void launch_stored(const Work& work);

inline void launch(const Work& work) {
  if (work.stored) return launch_stored(work);
  work.key.compute == Compute::kDouble ? launch_native_double(work) : launch_native_float(work);
}

// The gradients of one step, on the way to their norm.
struct NormWork {
  std::byte* const* gradients;  // of all tensors; null: it takes no part
  const std::size_t* first_chunk;
  const TensorDesc* descs;  // on the device, as are
  const Chunk* chunks;
  Sums sums;
  void* stream;
};

// Adds up each tensor's squares.
void launch_sums(const NormWork& work);

// What goes before the updates of a step.
struct AdvanceWork {
  std::byte* const* gradients;  // of all tensors; null: it takes no part
  const std::uint32_t* group_of;
  std::uint32_t tensors;
  const std::vector<Group>& groups;
  DeviceState state;
  Captured* captured;
  PassOptions asked;
  Sums sums;
  void* stream;
};

// Ends the pass over gradients, advances the clocks of tensors that take part, prepares their steps, counts the step.
void launch_advance(const AdvanceWork& work);

// Have the driver load what is to be launched, where that must not happen at the first launch.
inline void load(Work work) {
  work.loads = true;
  launch(work);
}
void load_sums(std::size_t tensors);
void load_advance();

// Overwrites options of captured steps, after what is in the stream.
void set_captured(double* to, const double* values, std::size_t count, void* stream);

}  // namespace gradstep::cuda
