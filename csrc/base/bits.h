#pragma once

#include <cstdint>

#include "base/macros.h"

namespace gradstep {

static_assert(sizeof(float) == 4 && sizeof(double) == 8, "floats and doubles are IEEE binary32 and binary64");

template <class To, class From>
GS_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

GS_INLINE std::uint32_t bits_of(float x) { return bits_as<std::uint32_t>(x); }
GS_INLINE float float_of(std::uint32_t bits) { return bits_as<float>(bits); }

inline constexpr std::uint32_t kSign = 0x80000000, kInfinity = 0x7f800000, kNan = 0x7fc00000;

GS_INLINE std::uint32_t magnitude_of(float x) { return bits_of(x) & ~kSign; }

// All ones where it holds. Of masks compilers make more than of selects, which they move to narrower types, and nest.
GS_INLINE std::uint32_t mask(bool holds) { return -static_cast<std::uint32_t>(holds); }
GS_INLINE std::uint32_t choose(bool holds, std::uint32_t yes, std::uint32_t no) {
  return (yes & mask(holds)) | (no & ~mask(holds));
}

}  // namespace gradstep
