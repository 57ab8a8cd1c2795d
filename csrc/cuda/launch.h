#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda/args.h"

namespace gradstep::cuda {

// The tensors of one step that have the same key.
struct Work {
  rules::Key key;
  bool stored;                        // whether any stream is not native
  bool clears;                        // whether gradients are set to zero
  std::vector<std::byte*> gradients;  // of all tensors; null: another key, or takes no part
  const std::size_t* first_chunk;     // of each tensor, then the number of chunks
  const TensorDesc* descs;            // this and the next three are on the device
  const Chunk* chunks;
  const std::byte* steps;
  const GradientPass* pass;
  void* stream;
  bool loads = false;  // load the kernels instead of launching them
};

// Launch the update kernels, up to kMany tensors at a time. They throw std::runtime_error if CUDA fails. Each is
// defined in a separate file, because each takes minutes to compile.
void launch_native_float(const Work& work);
void launch_native_double(const Work& work);
void launch_stored(const Work& work);

inline void launch(const Work& work) {
  if (work.key.compute == Compute::kDouble) return launch_native_double(work);
  work.stored ? launch_stored(work) : launch_native_float(work);
}

// The gradients of one step, whose norm is to be computed.
struct NormWork {
  std::byte* const* gradients;  // of all tensors; null: the tensor takes no part
  const std::size_t* first_chunk;
  const TensorDesc* descs;  // on the device, as are chunks and sums
  const Chunk* chunks;
  Sums sums;
  void* stream;
};

// Sums each tensor's squares.
void launch_sums(const NormWork& work);

// Measure the norms of a step whose updates have these descriptions and gradients: they precede and follow the updates.
// The first overwrites where chunks are not finite.
void launch_measure_before(const NormWork& work, const NormSums& sums);
void launch_measure_after(const NormWork& work, NormSums sums);

// Sums rows of a gradient with this description. The lists of `sums` are on the device.
void launch_row_sums(const TensorDesc& desc, std::byte* gradient, const RowSums& sums, std::int64_t count,
                     void* stream);

// The input of the launch that precedes the updates of a step.
struct AdvanceWork {
  std::byte* const* gradients;  // of all tensors; null: the tensor takes no part
  const std::uint32_t* group_of;
  std::uint32_t tensors;
  const std::vector<Group>& groups;
  DeviceState state;
  Captured* captured;
  PassOptions asked;
  double grad_scale;
  Sums sums;
  void* stream;
};

// Finishes the gradient pass, advances the clocks of tensors that take part, prepares their updates, and counts the
// step.
void launch_advance(const AdvanceWork& work);

// Load the kernels in advance, for when loading them at the first launch is not allowed.
inline void load(Work work) {
  work.loads = true;
  launch(work);
}
void load_sums(std::size_t tensors);
void load_advance();

// Overwrites options of captured steps, in stream order.
void set_captured(double* to, const double* values, std::size_t count, void* stream);

}  // namespace gradstep::cuda
