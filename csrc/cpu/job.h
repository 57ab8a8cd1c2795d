#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/kernel.h"

namespace gradstep::cpu {

// The order in which a tensor's elements are walked, last axis fastest, and how each stream lies in it.
struct Layout {
  std::vector<std::int64_t> shape;                 // never empty
  std::vector<std::int64_t> strides[kMaxStreams];  // bytes; empty: packed and aligned, or not kept

  bool packed() const {
    for (const auto& stream : strides) {
      if (!stream.empty()) return false;
    }
    return true;
  }
};

// What is done to each element of some tensors in one step.
struct Update {
  Kernel kernel;
  const void* element;  // what the kernel was compiled for, with the step's scalars
  Flush flush;          // null: subnormals stay
  Compute compute;
};

// One tensor's part in a step, in a cache line, for there may be thousands.
struct alignas(64) Job {
  const Update* update = nullptr;        // null: none
  std::byte* streams[kMaxStreams] = {};  // null: this state is not kept
  const Layout* strided = nullptr;       // null: every stream is packed and aligned
};
static_assert(sizeof(Job) == 64);

void run_tiles(const Job& job, std::int64_t begin, std::int64_t end);

// Updates elements [begin, end) of a tensor: row by row where the rows of all streams are long and packed. Other
// streams with strides pass through a tile in L1: a gather before, a scatter after, of these elements and of no byte
// between them. Where subnormals are flushed, the gradient passes through one too, and leaves there what is below
// kLeastGradient; the states lose theirs after the update.
inline void run(const Job& job, std::int64_t begin, std::int64_t end) {
  const Update& update = *job.update;
  if (job.strided != nullptr || update.flush != nullptr) return run_tiles(job, begin, end);
  update.kernel(update.element, job.streams, begin, end);
}

}  // namespace gradstep::cpu
