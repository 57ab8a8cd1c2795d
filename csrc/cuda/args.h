#pragma once

#include <cstddef>
#include <cstdint>

#include "job/job.h"
#include "job/norm.h"

// What the host hands to a kernel.
namespace gradstep::cuda {

// A warp takes a block of elements at a time, so that the codes that share a scale never leave it.
inline constexpr int kWarp = 32;
inline constexpr int kItems = kBlock / kWarp;  // elements of a lane
inline constexpr int kWarps = 4;
inline constexpr int kThreads = kWarps * kWarp;
// Each warp of a thread block goes around a chunk four times. Not yet measured on a GPU.
static_assert(kChunk == 4 * kWarps * kBlock);

// Elements [begin, end) of one tensor, kChunk at most, for one thread block.
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
struct Step : Around {
  alignas(Element) std::byte bytes[sizeof(Element)];

  GS_INLINE const Element& element() const { return *reinterpret_cast<const Element*>(bytes); }
};
inline constexpr std::size_t kMaxStep = rules::kMaxElement + 32;

// What the device keeps once a step was captured, so that a replay goes on from where the last step ended. All null
// before.
struct Held {
  std::byte* steps;             // of each tensor, in kMaxStep bytes: its Step, made of
  rules::Clock* clocks;         // its clock, and
  const std::uint32_t* groups;  // its group's
  double* options;              // kMaxOptions for each
  std::int64_t* taken;          // the number of steps
};

// How gradients were clipped, and the limit for steps that are captured.
struct Clip {
  double limit, norm, factor;
};

// Sums of squares on the way to a norm.
struct Sums {
  double *of_chunks, *of_tensors;    // what is in them before does not matter
  const std::uint32_t* first_chunk;  // of each tensor, and one more
  std::uint32_t tensors;
  double limit;  // NaN: the clip's
  Clip* clip;
};

// A launch: neighbours among the tensors, and few different steps. They travel with the launch, so that a step neither
// copies nor waits.
template <class Element, int kTensors>
struct Args {
  static constexpr int kSteps = 8;

  const Row* rows;             // of all tensors
  const Chunk* chunks;         // from this launch's first
  Held held;                   // in place of `steps`
  const Clip* clip;            // null: gradients are taken as they are
  std::uint32_t first, count;  // tensors
  Step<Element> steps[kSteps];
  std::byte* gradients[kTensors];  // null: the tensor takes no part
  std::uint8_t step_of[kTensors];
};

// A launch takes 32 KB of arguments. Lists that fit into less do not pay for them.
inline constexpr std::size_t kMostBytes = 32764;
inline constexpr int kFew = 320, kMany = 3400;

}  // namespace gradstep::cuda
