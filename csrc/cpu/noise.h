#pragma once

#include <cstdint>

#include "codecs/noise.h"

namespace gradstep::cpu {

// The random bits of a stream in one step, as far as they are drawn: of each word the upper `bits`, as its codec takes
// them.
struct Noise : NoiseKey {
  static constexpr std::int64_t kGroups = 256;             // drawn at once,
  static constexpr std::int64_t kSpan = kGroups * kGroup;  // for so many elements

  // Where an element's group is. Unsigned, because a remainder of what may be negative takes longer.
  static constexpr std::uint64_t group_of(std::int64_t element) {
    return static_cast<std::uint64_t>(element) / kGroup % kGroups;
  }

  int bits;
  alignas(64) std::uint32_t places[kGroup];
  alignas(64) std::uint32_t groups[kGroups];
};

}  // namespace gradstep::cpu
