#pragma once

#include <cstdint>
#include <vector>

#include "cuda/args.h"

namespace gradstep::cuda {

// The tensors of one step that have the same key.
struct Work {
  rules::Key key;
  bool stored;      // whether something is stored in another type
  const Job* jobs;  // of all tensors; those with another key are left out
  std::uint32_t tensors;
  const std::size_t* first_chunk;  // of each tensor, and one more
  const Row* rows;                 // on the device, as are
  const Chunk* chunks;
  Held held;
  const Clip* clip;
  void* stream;
  bool loads = false;  // the kernels, in place of launching them
};

// One launch for up to kMany tensors. They throw std::runtime_error where CUDA fails. Each is compiled by itself, for
// it takes minutes.
void launch_native_float(const Work& work);
void launch_native_double(const Work& work);
void launch_stored(const Work& work);

// Advances the clocks that the device keeps, of tensors that have a gradient, and computes their steps.
void advance_held(const Work& work);

// Counts a step in which no tensor takes part.
void count_held(const Held& held, void* stream);

// Overwrites options that the device keeps, after what is in the stream.
void set_held(double* options, const std::vector<double>& values, void* stream);

// The norm of the gradients of one step.
struct NormWork {
  const Job* jobs;
  const std::size_t* first_chunk;
  const Row* rows;  // on the device, as are
  const Chunk* chunks;
  Sums sums;
  void* stream;
  bool loads = false;  // the kernels, in place of launching them
};

// Finds the norm and the factor.
void launch_norm(const NormWork& work);

inline void launch(const Work& work) {
  if (work.stored) return launch_stored(work);
  work.key.compute == Compute::kDouble ? launch_native_double(work) : launch_native_float(work);
}

// Has the driver load what is to be launched. It else does so at the first launch, and may not while a stream is
// captured.
inline void load(Work work) {
  work.loads = true;
  launch(work);
  advance_held(work);
}

}  // namespace gradstep::cuda
