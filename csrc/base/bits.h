#pragma once

#include <cstdint>

#include "base/macros.h"

namespace gradstep {

static_assert(sizeof(float) == 4, "a float is an IEEE binary32");

GS_INLINE std::uint32_t bits_of(float x) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}

GS_INLINE float float_of(std::uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

inline constexpr std::uint32_t kSign = 0x80000000, kInfinity = 0x7f800000, kNan = 0x7fc00000;

GS_INLINE std::uint32_t magnitude_of(float x) { return bits_of(x) & ~kSign; }

// All ones where it holds. Of masks compilers make more than of selects, which they move to narrower types, and nest.
GS_INLINE std::uint32_t mask(bool holds) { return -static_cast<std::uint32_t>(holds); }
GS_INLINE std::uint32_t choose(bool holds, std::uint32_t yes, std::uint32_t no) {
  return (yes & mask(holds)) | (no & ~mask(holds));
}

}  // namespace gradstep
