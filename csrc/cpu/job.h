#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/kernel.h"

namespace gradstep::cpu {

// The order in which a tensor's elements are walked, last axis fastest, and how each stream lies in it.
struct Layout {
  std::int64_t item_size = 0;
  std::vector<std::int64_t> shape;                 // never empty
  std::vector<std::int64_t> strides[kMaxStreams];  // bytes; empty: packed and aligned, or not kept

  bool packed() const {
    for (const auto& stream : strides) {
      if (!stream.empty()) return false;
    }
    return true;
  }
};

// One tensor's update, ready to run: a cache line, for a step may have thousands.
struct Job {
  Kernel kernel = nullptr;
  const void* element = nullptr;         // what the kernel was compiled for, with this step's scalars; null: no update
  std::byte* streams[kMaxStreams] = {};  // null: this state is not kept
  const Layout* strided = nullptr;       // null: every stream is packed and aligned
};

void run_strided(const Job& job, std::int64_t begin, std::int64_t end);

// Updates elements [begin, end) of a tensor. Streams with strides pass through a tile in L1: a gather before, a scatter
// after, of these elements and of no byte between them.
inline void run(const Job& job, std::int64_t begin, std::int64_t end) {
  if (job.strided != nullptr) return run_strided(job, begin, end);
  job.kernel(job.element, job.streams, begin, end);
}

}  // namespace gradstep::cpu
