#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/kernel.h"
#include "cpu/tuning.h"
#include "exec/norm.h"
#include "exec/tensor_job.h"

namespace gradstep::cpu {

// Updates elements [begin, end) of a tensor with a stream that is strided or not native.
void run_stored(const TensorJob& job, const Kernels& kernels, std::int64_t begin, std::int64_t end, bool prefetches);

// Sets elements [begin, end) of a tensor's gradient, which is stored in the compute type, to zero.
void clear_gradient(const TensorJob& job, std::int64_t begin, std::int64_t end);
// Updates elements [begin, end) and clears their gradients chunk by chunk, while these are in a cache.
void run_and_clear(const TensorJob& job, const Kernels& kernels, std::int64_t begin, std::int64_t end, bool prefetches);

// The sums of squares of which a tensor's norms are computed, one per chunk.
struct ChunkSums {
  double *gradient, *update, *weight;
};
// Updates elements [begin, end) and sums squares chunk by chunk, while these are in a cache. `clears`: as above.
void run_and_measure(const TensorJob& job, const Kernels& kernels, std::int64_t begin, std::int64_t end,
                     bool prefetches, bool clears, const ChunkSums& sums);

// The sum of the gradient's squares over elements [begin, end), which is one chunk; the tensor's last may be shorter.
double sum_of_squares(const TensorJob& job, std::int64_t begin, std::int64_t end, bool prefetches);

// The first gradient in [begin, end), which is one chunk, that is infinite or NaN; `end` if there is none.
std::int64_t first_nonfinite(const TensorJob& job, std::int64_t begin, std::int64_t end);

// Computes rows [begin, end) of the sums. The job has the gradient alone, in the order of its indices.
void sum_rows(const TensorJob& job, const RowSums& rows, std::int64_t begin, std::int64_t end);

// The number of elements of a packed stream from `begin` to the next cache line.
inline std::int64_t to_cache_line(const std::byte* stream, std::int64_t item_size, std::int64_t begin) {
  constexpr std::int64_t kCacheLine = 64;
  const auto behind =
      static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(stream + begin * item_size) % kCacheLine);
  return (kCacheLine - behind) % kCacheLine / item_size;
}

// Calls f(begin, end) for the parts of elements [begin, end) of the order in which a tensor's chunks are visited: for
// all of them at once if the order is ascending.
template <class F>
void each_part(const TensorJob& job, std::int64_t begin, std::int64_t end, const F& f) {
  if (job.layout == nullptr || job.layout->chunks.empty()) return f(begin, end);
  for (std::int64_t k = begin / kChunk; k < chunks_of(end); ++k) {
    const std::int64_t first = job.layout->chunks[static_cast<std::size_t>(k)] * kChunk;
    f(first, std::min(first + kChunk, job.layout->size()));
  }
}

// Updates elements [begin, end) of a tensor with the kernels of its update.
inline void run(const TensorJob& job, const Kernels& kernels, std::int64_t begin, std::int64_t end, bool prefetches) {
  if (job.layout != nullptr) return run_stored(job, kernels, begin, end, prefetches);
  const PreparedUpdate& update = *job.update;
  if (end - begin >= kAlignFrom) {
    const std::int64_t head = to_cache_line(job.streams[kParameter], size_of(update.key.compute), begin);
    kernels.native(update.element, job.streams, begin, begin + head, false, nullptr);
    begin += head;
  }
  kernels.native(update.element, job.streams, begin, end, prefetches, nullptr);
}

}  // namespace gradstep::cpu
