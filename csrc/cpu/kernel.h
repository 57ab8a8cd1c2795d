#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/combinations.h"
#include "cpu/noise.h"
#include "exec/streams.h"
#include "rules/all.h"

namespace gradstep::cpu {

// The block scales and the random bits of a tensor's streams, by stream; null if a stream has none.
struct StoredStreams {
  float* const* scales;
  const Noise* noise[kKernelStreams];
};

// Updates elements [begin, end) of packed streams that do not overlap; an absent stream is null. `element` is the
// rules::ElementUpdate that the kernel was compiled for. If a stream is not native, `begin` is a multiple of kBlock,
// and so is `end` unless it is the tensor's end. `prefetches` does not affect results.
using Kernel = void (*)(const void* element, std::byte* const* streams, std::int64_t begin, std::int64_t end,
                        bool prefetches, const StoredStreams* stored);

// The kernel for one combination of storage.
struct StoredKernel {
  StorageKey storage = kNoStreams;
  bool to_nearest = false;  // whether it can round narrow types only to nearest
  Kernel kernel = nullptr;  // null: the update has no kernel for the combination
};

// The kernels of one update.
struct Kernels {
  Kernel native;
  StoredKernel stored[Combinations::kCount];
};

}  // namespace gradstep::cpu
