#pragma once

#include <cstddef>
#include <cstdint>

#include "base/macros.h"
#include "codecs/all.h"

// The norm of all gradients together, by additions whose order depends on nobody who adds (docs/numerics.md): squares
// are added up to chunks, those to tensors, those to the whole; each time by kSumLanes lanes, which are folded at last.
namespace gradstep {

inline constexpr std::int64_t kChunk = 4096;  // elements. What tasks share out begins at one
inline constexpr int kSumLanes = 128;         // every 128th number is of the same lane
static_assert(kChunk % kBlock == 0);

constexpr std::int64_t chunks_of(std::int64_t size) { return size / kChunk + (size % kChunk != 0); }

// Sums the lanes; overwrites them.
GS_INLINE double fold(double* lanes) {
  for (int half = kSumLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] = lanes[i] + lanes[i + half];
  }
  return lanes[0];
}

// The sum of numbers that are not negative.
inline double sum(const double* numbers, std::size_t count) {
  if (count == 1) return numbers[0];  // as the lanes would say
  double lanes[kSumLanes] = {};
  for (std::size_t i = 0; i < count; ++i) lanes[i % kSumLanes] = lanes[i % kSumLanes] + numbers[i];
  return fold(lanes);
}

// What a step asks of the pass over its gradients. Without either, there is none.
struct PassOptions {
  bool clips;
  double clip_norm;  // the most that the norm may be
  bool skips_nonfinite;

  GS_INLINE bool asks() const { return clips || skips_nonfinite; }
};

// What the pass found, and what the step makes of it.
struct GradientPass {
  double norm;
  bool finite;    // the norm
  double factor;  // what gradients are multiplied by
  bool skip;      // the step leaves parameters, states and clocks as they are
};
inline constexpr GradientPass kNoPass{0, true, 1, false};

// A norm that is NaN clips too, so that it is not hidden.
GS_INLINE GradientPass judge(double norm, const PassOptions& asked) {
  const bool finite = norm - norm == 0;
  const double factor = !asked.clips || norm <= asked.clip_norm ? 1 : asked.clip_norm / norm;
  return {norm, finite, factor, asked.skips_nonfinite && !finite};
}

}  // namespace gradstep
