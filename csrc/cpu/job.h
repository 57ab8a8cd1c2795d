#pragma once

#include <cstdint>

#include "cpu/kernel.h"
#include "job/job.h"

namespace gradstep::cpu {

inline Kernel kernel_of(const Update& update) { return reinterpret_cast<Kernel>(update.kernel); }

void run_tiles(const Job& job, std::int64_t begin, std::int64_t end, bool prefetches);

// The sum of the gradient's squares over elements [begin, end), a chunk or the last of it.
double sum_of_squares(const Job& job, std::int64_t begin, std::int64_t end, bool prefetches);

// Updates elements [begin, end) of a tensor: row by row where the rows of all streams are long, native and packed.
// Else streams that are strided or stored in another type pass through a tile in L1: gathered and decoded before,
// encoded and scattered after, these elements and no byte between them. Where subnormals are flushed, the gradient
// passes through one too, and leaves there what is below kLeastGradient; the states lose theirs after the update.
inline void run(const Job& job, std::int64_t begin, std::int64_t end, bool prefetches) {
  const Update& update = *job.update;
  if (job.layout != nullptr || update.flush) return run_tiles(job, begin, end, prefetches);
  kernel_of(update)(update.element, job.streams, begin, end, prefetches);
}

}  // namespace gradstep::cpu
