#pragma once

#include <cstdint>

#include "codecs/noise.h"
#include "exec/norm.h"

namespace gradstep::cpu {

// The random bits drawn for a stream in one step: the upper `bits` bits of each word, as many as the codec needs.
struct Noise : NoiseKey {
  static constexpr std::int64_t kSpan = kPart;             // elements whose groups are drawn at once
  static constexpr std::int64_t kGroups = kSpan / kGroup;  // the number of these groups

  // The index of an element's group. Unsigned, because the remainder of a signed integer takes longer.
  static constexpr std::uint64_t group_of(std::int64_t element) {
    return static_cast<std::uint64_t>(element) / kGroup % kGroups;
  }

  std::int64_t first;  // the index of the tensor's first element in the whole that it is a part of
  int bits;
  alignas(64) std::uint32_t places[kGroup];
  alignas(64) std::uint32_t groups[kGroups];
};

}  // namespace gradstep::cpu
