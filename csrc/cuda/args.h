#pragma once

#include <cstddef>
#include <cstdint>

#include "job/job.h"

// What the host hands to a kernel.
namespace gradstep::cuda {

// A warp takes a block of elements at a time, so that the codes that share a scale never leave it.
inline constexpr int kWarp = 32;
inline constexpr int kItems = kBlock / kWarp;  // elements of a lane
inline constexpr int kWarps = 4;
inline constexpr int kThreads = kWarps * kWarp;
// Elements of a large tensor to a thread block: each of its warps goes around four times. Not yet measured on a GPU.
inline constexpr std::int64_t kChunk = 4 * kWarps * kBlock;

// Elements [begin, end) of one tensor, for one thread block.
struct Chunk {
  std::uint32_t tensor;
  std::int64_t begin, end;
};

// One tensor, but for its gradient, which every step may bring anew.
struct Row {
  std::byte* streams[kMaxStreams];  // null: there is none
  float* scales[kMaxStreams];
  // Where streams are strided: the walk's rank, its shape, and each stream's strides in bytes. Else null.
  const std::int64_t* walk;
  DType dtypes[kMaxStreams];
  std::uint8_t item_sizes[kMaxStreams];
  bool strided[kMaxStreams];
};

// What is done to tensors of one group at the same step number.
template <class Element>
struct Step {
  alignas(Element) std::byte bytes[sizeof(Element)];
  std::uint64_t seed;
  std::uint32_t number;
  bool flush, stochastic;

  GS_INLINE const Element& element() const { return *reinterpret_cast<const Element*>(bytes); }
};

// A launch: `kTensors` neighbours at most, and few different steps. They travel with the launch, so that a step neither
// copies nor waits.
template <class Element, int kTensors>
struct Args {
  static constexpr int kSteps = 8;

  const Row* rows;            // of all tensors
  const Chunk* chunks;        // from this launch's first
  const Step<Element>* held;  // where steps are kept on the device, one a tensor; else null
  std::uint32_t first;        // tensor
  Step<Element> steps[kSteps];
  std::byte* gradients[kTensors];  // null: the tensor takes no part
  std::uint8_t step_of[kTensors];
};

// A launch takes 32 KB of arguments. Lists that fit into less do not pay for them.
inline constexpr std::size_t kMostBytes = 32764;
inline constexpr int kFew = 320, kMany = 3500;

}  // namespace gradstep::cuda
