#pragma once

#include <cstddef>
#include <cstdint>

#include "base/macros.h"
#include "codecs/all.h"

// The global norm of the gradients. The order of its additions does not depend on threads or devices
// (docs/numerics.md): squares are summed per chunk, chunks per tensor, and tensors to the total. Each sum has kSumLanes
// lanes, which are folded at the end.
namespace gradstep {

inline constexpr std::int64_t kChunk = 4096;  // elements; tasks begin at multiples of it
inline constexpr int kSumLanes = 128;         // number i is added to lane i % kSumLanes
static_assert(kChunk % kBlock == 0);

constexpr std::int64_t chunks_of(std::int64_t size) { return size / kChunk + (size % kChunk != 0); }

// Sums the lanes; overwrites them.
GS_INLINE double fold(double* lanes) {
  for (int half = kSumLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] = lanes[i] + lanes[i + half];
  }
  return lanes[0];
}

// The sum of non-negative numbers.
inline double sum(const double* numbers, std::size_t count) {
  if (count == 1) return numbers[0];  // equals the folded lanes, since the others are zero
  double lanes[kSumLanes] = {};
  for (std::size_t i = 0; i < count; ++i) lanes[i % kSumLanes] = lanes[i % kSumLanes] + numbers[i];
  return fold(lanes);
}

// What a step requires of the gradient pass; there is no pass if it requires nothing.
struct PassOptions {
  bool clips;
  double clip_norm;  // upper bound of the norm
  bool skips_nonfinite;

  GS_INLINE bool asks() const { return clips || skips_nonfinite; }
};

// The result of the gradient pass.
struct GradientPass {
  double norm;
  bool finite;    // whether the norm is
  double factor;  // multiplies the gradients
  bool skip;      // the step leaves parameters, states and clocks unchanged
};
inline constexpr GradientPass kNoPass{0, true, 1, false};

// A NaN norm gives a NaN factor, so that NaN is not hidden.
GS_INLINE GradientPass evaluate_norm(double norm, const PassOptions& asked) {
  const bool finite = norm - norm == 0;
  const double factor = !asked.clips || norm <= asked.clip_norm ? 1 : asked.clip_norm / norm;
  return {norm, finite, factor, asked.skips_nonfinite && !finite};
}

}  // namespace gradstep
