#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/conversions.h"
#include "cpu/kernel.h"

namespace gradstep::cpu {

// The order in which a tensor's elements are walked, last axis fastest, and how each stream lies in it and is stored.
struct Layout {
  std::vector<std::int64_t> shape;                 // never empty
  std::vector<std::int64_t> strides[kMaxStreams];  // bytes; empty: packed and aligned, or not kept
  DType dtypes[kMaxStreams] = {};
  float* scales[kMaxStreams] = {};  // of the blocks, where the type has scales
  std::uint32_t tensor = 0;         // its number among the optimizer's, for random bits

  bool native() const {
    return std::all_of(std::begin(dtypes), std::end(dtypes), [](DType dtype) { return is_native(dtype); });
  }
  // Whether a kernel can work on every stream where it lies.
  bool plain() const {
    return native() && std::all_of(std::begin(strides), std::end(strides), [](const auto& s) { return s.empty(); });
  }
};

// What is done to each element of some tensors in one step.
struct Update {
  Kernel kernel;
  const void* element;  // what the kernel was compiled for, with the step's scalars
  Compute compute;
  const Conversions* conversions = nullptr;
  bool flush = false;       // subnormals
  bool stochastic = false;  // the rounding of what is stored in 16 bits
  std::uint64_t seed = 0;
  std::uint32_t step = 0;
};

// One tensor's part in a step, in a cache line, for there may be thousands.
struct alignas(64) Job {
  const Update* update = nullptr;        // null: none
  std::byte* streams[kMaxStreams] = {};  // null: there is none
  const Layout* layout = nullptr;        // null: a kernel can work on every stream where it lies
};
static_assert(sizeof(Job) == 64);

void run_tiles(const Job& job, std::int64_t begin, std::int64_t end);

// Updates elements [begin, end) of a tensor: row by row where the rows of all streams are long, native and packed.
// Else streams that are strided or stored in another type pass through a tile in L1: gathered and decoded before,
// encoded and scattered after, these elements and no byte between them. Where subnormals are flushed, the gradient
// passes through one too, and leaves there what is below kLeastGradient; the states lose theirs after the update.
inline void run(const Job& job, std::int64_t begin, std::int64_t end) {
  const Update& update = *job.update;
  if (job.layout != nullptr || update.flush) return run_tiles(job, begin, end);
  update.kernel(update.element, job.streams, begin, end);
}

}  // namespace gradstep::cpu
