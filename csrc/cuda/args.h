#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/tuning.h"
#include "exec/norm.h"
#include "exec/tensor_job.h"

// Kernel arguments and the device's data structures.
namespace gradstep::cuda {

// A warp processes one block of elements at a time, so that all codes that share a scale are in one warp.
inline constexpr int kWarp = 32;
inline constexpr int kItems = kBlock / kWarp;  // elements per lane
inline constexpr int kThreads = kWarps * kWarp;

// Elements [begin, end) of one tensor, kChunk at most, for one thread block.
struct Chunk {
  std::uint32_t tensor;
  std::int64_t begin, end;
};

// One tensor, without its gradient, whose address may change with every step.
struct TensorDesc {
  std::byte* streams[kMaxStreams];  // null: no such stream
  float* scales[kMaxStreams];
  // If any stream is strided: the rank and shape of the traversal, and each stream's strides in bytes. Otherwise null.
  const std::int64_t* strided_layout;
  // With a row gradient, the indices of its rows and the elements of a row; otherwise null. The first axis of the
  // traversal goes through the list in all streams but the gradient.
  const std::int64_t* rows;
  std::int64_t row_length;
  DType dtypes[kMaxStreams];
  std::uint8_t item_sizes[kMaxStreams];
  bool strided[kMaxStreams];
  Compute compute;
};

// A tensor's update in the most recently prepared step.
template <class ElementUpdate>
struct Step : StorePolicy {
  alignas(ElementUpdate) std::byte bytes[sizeof(ElementUpdate)];

  GS_INLINE const ElementUpdate& element() const { return *reinterpret_cast<const ElementUpdate*>(bytes); }
};
inline constexpr std::size_t kMaxStep = rules::kMaxElementUpdate + 32;

// State that the device keeps from step to step.
struct DeviceState {
  std::byte* steps;             // the Step of each tensor, kMaxStep bytes apart
  rules::Clock* clocks;         // of each tensor
  const std::uint32_t* groups;  // the group of each tensor
  const Compute* computes;      // the compute type of each tensor
  std::int64_t* taken;          // the number of steps taken; null: not counted
  GradientPass* pass;           // the result of the last gradient pass
};

// The options of a group, and the key of its updates, in which the tensor's compute type is to be filled in.
struct Group {
  rules::Key key;
  double options[rules::kMaxOptions];
};

// The options of captured steps, which may change between replays. The options of other steps are launch arguments.
struct Captured {
  PassOptions asked;
  GradientPass pass;  // the result of the last gradient pass, once a step has been captured

  GS_INLINE Group* groups() { return reinterpret_cast<Group*>(this + 1); }  // they follow this object in memory
};

// Sums of squares from which a norm is computed, and where gradients are not finite.
struct Sums {
  double *of_chunks, *of_tensors;     // need not be initialized, nor do the next two
  std::int64_t* nonfinite;            // the first element of each tensor that is not finite; -1: none
  std::uint32_t* nonfinite_from_end;  // of each chunk: how far before kChunk the first such element is; 0: none
  const std::uint32_t* first_chunk;   // of each tensor, then the number of chunks
  std::uint32_t tensors;
};

// Sums of squares from which the norms of each tensor are computed: those of TensorNorms, in its order.
struct NormSums {
  static constexpr int kKinds = 3;
  enum Kind { kOfGradient, kOfUpdate, kOfWeight };

  std::byte* const* before;          // memory for each tensor's parameter in its compute type
  double* of_chunks;                 // by kind, then by chunk; need not be initialized
  double* of_tensors;                // by tensor, then by kind
  const std::uint32_t* first_chunk;  // of each tensor, then the number of chunks
  std::uint32_t tensors, chunks;
};

// Arguments of the launch that precedes the updates: consecutive tensors of few groups.
struct AdvanceArgs {
  static constexpr std::uint32_t kTensors = 4096, kGroups = 8;

  DeviceState state;
  Captured* captured;  // null: the options are in these arguments
  PassOptions asked;
  double grad_scale;
  Sums sums;                   // of the gradient pass; null: there is no pass
  bool is_first;               // whether this is the step's first launch
  std::uint32_t first, count;  // of tensors
  std::uint32_t first_group;
  Group groups[kGroups];
  std::uint32_t active[kTensors / 32];  // one bit per tensor: whether it takes part
};

// Arguments of an update launch: consecutive tensors. Gradients are passed as arguments, so that a step neither copies
// nor waits.
template <class ElementUpdate, int kTensors>
struct Args {
  const TensorDesc* descs;         // of all tensors
  const Chunk* chunks;             // starting with this launch's first
  const std::byte* steps;          // of all tensors
  const GradientPass* pass;        // null: there was no pass
  std::uint32_t first;             // index of the first tensor
  bool clears;                     // whether gradients are set to zero
  std::byte* gradients[kTensors];  // null: the tensor takes no part
};

}  // namespace gradstep::cuda
