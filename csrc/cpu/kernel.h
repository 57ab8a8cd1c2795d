#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/combinations.h"
#include "cpu/noise.h"
#include "exec/streams.h"
#include "rules/all.h"

namespace gradstep::cpu {

// What a kernel needs of streams that are not native, by stream: the scales of blocks, and random bits; null where
// there are none.
struct StoredStreams {
  float* const* scales;
  const Noise* noise[kMaxStreams];
};

// Updates elements [begin, end) of packed streams, apart from one another; a stream that there is not is null.
// `element` is the rules::ElementUpdate that the kernel was compiled for. Where something is stored in another type,
// `begin` is a multiple of kBlock, and so is `end` but at the tensor's. `prefetches` changes no bit.
using Kernel = void (*)(const void* element, std::byte* const* streams, std::int64_t begin, std::int64_t end,
                        bool prefetches, const StoredStreams* stored);

// The kernel for one combination of storage.
struct StoredKernel {
  StorageKey storage = kNoStreams;
  bool to_nearest = false;  // whether it cannot round stochastically what may be
  Kernel kernel = nullptr;  // null: this update has none for the combination
};

// The kernels of one update.
struct Kernels {
  Kernel native;
  StoredKernel stored[Combinations::kCount];
};

}  // namespace gradstep::cpu
