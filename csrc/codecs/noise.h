#pragma once

#include <cstdint>

#include "base/philox.h"

// Random bits for stochastic rounding. For each stream of a tensor and each step, one word is drawn per place within a
// group of 64 elements and one word per group; the random word of an element is the exclusive or of its two.
// docs/numerics.md explains why that suffices.
namespace gradstep {

// Identifies the random words of one stream in one step.
struct NoiseKey {
  std::uint64_t seed;
  std::uint32_t step, tensor, stream;
};

inline constexpr std::int64_t kGroup = 64;
inline constexpr int kPlaceCounters = kGroup / 4;

enum Kind : std::uint32_t { kOfGroup, kOfPlace };

// The second word of the counters from `first` on, up to the next multiple of 2^32.
GS_INLINE std::uint32_t upper_half(const NoiseKey& key, Kind kind, std::int64_t first) {
  return static_cast<std::uint32_t>(first >> 32) + (key.stream << 24) + (kind << 31);
}

// Draws the four words of a counter. For groups, word k belongs to group 4 * counter + k; for places, to place counter
// + k * kPlaceCounters.
GS_INLINE FourWords draw(const NoiseKey& key, std::uint32_t counter, std::uint32_t upper) {
  return philox({counter, upper, key.step, key.tensor}, static_cast<std::uint32_t>(key.seed),
                static_cast<std::uint32_t>(key.seed >> 32));
}

}  // namespace gradstep
