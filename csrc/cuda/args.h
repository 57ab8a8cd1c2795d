#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/tuning.h"
#include "exec/norm.h"
#include "exec/tensor_job.h"

// What the host hands to a kernel.
namespace gradstep::cuda {

// A warp takes a block of elements at a time, so that the codes that share a scale never leave it.
inline constexpr int kWarp = 32;
inline constexpr int kItems = kBlock / kWarp;  // elements of a lane
inline constexpr int kThreads = kWarps * kWarp;

// Elements [begin, end) of one tensor, kChunk at most, for one thread block.
struct Chunk {
  std::uint32_t tensor;
  std::int64_t begin, end;
};

// One tensor, but for its gradient, which every step may bring anew.
struct TensorDesc {
  std::byte* streams[kMaxStreams];  // null: there is none
  float* scales[kMaxStreams];
  // Where streams are strided: the rank and shape of the walk, and each stream's strides in bytes. Else null.
  const std::int64_t* strided_layout;
  DType dtypes[kMaxStreams];
  std::uint8_t item_sizes[kMaxStreams];
  bool strided[kMaxStreams];
};

// What the step that was prepared last does to a tensor.
template <class ElementUpdate>
struct Step : StorePolicy {
  alignas(ElementUpdate) std::byte bytes[sizeof(ElementUpdate)];

  GS_INLINE const ElementUpdate& element() const { return *reinterpret_cast<const ElementUpdate*>(bytes); }
};
inline constexpr std::size_t kMaxStep = rules::kMaxElementUpdate + 32;

// What the device keeps from step to step.
struct DeviceState {
  std::byte* steps;             // of each tensor, in kMaxStep bytes: its Step, made of
  rules::Clock* clocks;         // its clock, and
  const std::uint32_t* groups;  // its group's options, for
  const Compute* computes;      // the type that it is computed in
  std::int64_t* taken;          // the number of steps; null: there are none
  GradientPass* pass;           // of the last step that had one
};

// The options of a group, and the updates that they ask for, but for the type that a tensor is computed in.
struct Group {
  rules::Key key;
  double options[rules::kMaxOptions];
};

// The options of captured steps, which may change between replays. Those of other steps come with the launch.
struct Captured {
  PassOptions asked;
  GradientPass pass;  // of the last step from the first that is captured on

  GS_INLINE Group* groups() { return reinterpret_cast<Group*>(this + 1); }  // behind it
};

// Sums of squares on the way to a norm.
struct Sums {
  double *of_chunks, *of_tensors;    // what is in them before does not matter
  const std::uint32_t* first_chunk;  // of each tensor, and one more
  std::uint32_t tensors;
};

// The launch that goes before those of the updates: neighbours among the tensors, of few groups.
struct AdvanceArgs {
  static constexpr std::uint32_t kTensors = 4096, kGroups = 8;

  DeviceState state;
  Captured* captured;  // null: options come with the launch
  PassOptions asked;
  Sums sums;                   // of the pass over gradients; null: there is none
  bool is_first;               // of the step
  std::uint32_t first, count;  // tensors
  std::uint32_t first_group;
  Group groups[kGroups];
  std::uint32_t active[kTensors / 32];  // a bit for each tensor: whether it takes part
};

// A launch of updates: neighbours among the tensors. Their gradients travel with it, so that a step neither copies nor
// waits.
template <class ElementUpdate, int kTensors>
struct Args {
  const TensorDesc* descs;         // of all tensors
  const Chunk* chunks;             // from this launch's first
  const std::byte* steps;          // of all tensors
  const GradientPass* pass;        // null: there was none
  std::uint32_t first;             // tensor
  std::byte* gradients[kTensors];  // null: the tensor takes no part
};

}  // namespace gradstep::cuda
