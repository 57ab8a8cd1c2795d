#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>

#include "base/macros.h"
#include "codecs/all.h"
#include "codecs/noise.h"

// The global norm of the gradients. The order of its additions does not depend on threads or devices
// (docs/numerics.md): squares are summed per chunk, chunks per tensor, and tensors to the total. Each sum has kSumLanes
// lanes, which are folded at the end.
namespace gradstep {

inline constexpr std::int64_t kChunk = 4096;  // elements; tasks begin at multiples of it
inline constexpr int kSumLanes = 128;         // number i is added to lane i % kSumLanes
static_assert(kChunk % kBlock == 0);
// A part of a tensor, whose other parts are elsewhere, begins at a multiple of so many elements: those whose random
// bits a processor draws at once.
inline constexpr std::int64_t kPart = 256 * kGroup;
static_assert(kPart % kChunk == 0);

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

GS_INLINE bool is_finite(double x) { return x - x == 0; }

// The larger of two sums of squares; NaN if either is NaN.
GS_INLINE double larger_sum(double a, double b) { return a >= b || a != a ? a : b; }

// The norm that is bounded.
enum class Clipping : std::uint8_t { kNone, kGlobal, kPerTensor };

// What a step requires of the gradient pass; there is no pass if it requires nothing.
struct PassOptions {
  Clipping clipping;
  double limit;  // upper bound of the norm
  bool skips_nonfinite;

  GS_INLINE bool asks() const { return clipping != Clipping::kNone || skips_nonfinite; }

  // A NaN norm gives a NaN factor, so that NaN is not hidden.
  GS_INLINE double clip(double norm) const { return norm <= limit ? 1 : limit / norm; }
};

// An element of a tensor; element -1: none.
struct Position {
  std::uint32_t tensor;
  std::int64_t element;

  GS_INLINE bool exists() const { return element >= 0; }
};
inline constexpr Position kNowhere{0, -1};

// The result of the gradient pass, after the division by the scale of the gradients.
struct GradientPass {
  double norm;
  double clip_factor;  // with kPerTensor, the smallest
  double factor;       // multiplies the gradients; with kPerTensor, if they are not clipped
  Position nonfinite;  // the first gradient that is infinite or NaN
  bool skip;           // the step leaves parameters, states and clocks unchanged

  // Multiplies the gradients of a tensor whose squares have this sum.
  GS_INLINE double factor_of(double squares, const PassOptions& asked, double grad_scale) const {
    return asked.clipping == Clipping::kPerTensor ? asked.clip(sqrt(squares) / grad_scale) / grad_scale : factor;
  }
};

GS_INLINE GradientPass no_pass(double grad_scale) { return {0, 1, 1 / grad_scale, kNowhere, false}; }

// The result, from the sum of all squares and the largest of the tensors' sums.
GS_INLINE GradientPass evaluate_pass(double squares, double largest, Position nonfinite, const PassOptions& asked,
                                     double grad_scale) {
  const double norm = sqrt(squares) / grad_scale;
  const bool per_tensor = asked.clipping == Clipping::kPerTensor;
  const double clip =
      asked.clipping == Clipping::kNone ? 1 : asked.clip(per_tensor ? sqrt(largest) / grad_scale : norm);
  return {norm, clip, (per_tensor ? 1 : clip) / grad_scale, nonfinite, asked.skips_nonfinite && nonfinite.exists()};
}

// The norms of a tensor's elements in a step.
struct TensorNorms {
  double gradient;  // after the division by the scale of the gradients
  double update;    // of the change of the parameter
  double weight;    // of the parameter after the step
  bool exist;       // whether they were measured
};

// From sums of squares.
GS_INLINE TensorNorms evaluate_norms(double gradient, double update, double weight, double grad_scale) {
  return {sqrt(gradient) / grad_scale, sqrt(update), sqrt(weight), true};
}

}  // namespace gradstep
