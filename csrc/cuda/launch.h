#pragma once

#include "cuda/args.h"

namespace gradstep::cuda {

// The tensors of one step that have the same key.
struct Work {
  rules::Key key;
  bool stored;      // whether some are stored in another type, strided, or flushed
  const Job* jobs;  // of all tensors, in host memory; those with another key are left out
  std::uint32_t tensors;
  // Of all tensors, on the device: rows, chunks, and steps where they are kept there. Tensor i has the chunks from
  // first_chunk[i] on, which is in host memory, with one entry more than there are tensors.
  const Row* rows;
  const Chunk* chunks;
  const void* held;
  const std::uint32_t* first_chunk;
  void* stream;
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

}  // namespace gradstep::cuda
