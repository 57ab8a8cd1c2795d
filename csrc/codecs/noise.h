#pragma once

#include <cstdint>

#include "base/philox.h"

// Random bits for rounding. A stream of a tensor in one step has a word for each place in a group of 64 elements and
// one for each group; an element has its two combined by exclusive or. docs/numerics.md says why that is enough.
namespace gradstep {

// Whose words they are.
struct NoiseKey {
  std::uint64_t seed;
  std::uint32_t step, tensor, stream;
};

inline constexpr std::int64_t kGroup = 64;
inline constexpr int kPlaceCounters = kGroup / 4;

enum Kind : std::uint32_t { kOfGroup, kOfPlace };

// The upper half of the counters from `first` on, up to where it carries.
GS_INLINE std::uint32_t upper_half(const NoiseKey& key, Kind kind, std::int64_t first) {
  return static_cast<std::uint32_t>(first >> 32) + (key.stream << 24) + (kind << 31);
}

// The four words of a counter. Those of groups belong to 4 * counter and the three after it; those of places to counter
// and the three kPlaceCounters, twice and three times that further on.
GS_INLINE FourWords draw(const NoiseKey& key, std::uint32_t counter, std::uint32_t upper) {
  return philox({counter, upper, key.step, key.tensor}, static_cast<std::uint32_t>(key.seed),
                static_cast<std::uint32_t>(key.seed >> 32));
}

}  // namespace gradstep
