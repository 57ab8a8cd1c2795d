#pragma once

#include <cstdint>

#include "base/macros.h"

// Operations on the bits of scalars. Rules and codecs are written for scalars; cpu/simd.h overloads the same functions
// for vectors, and argument-dependent lookup finds those.
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

GS_INLINE std::int32_t as_signed(std::uint32_t bits) { return static_cast<std::int32_t>(bits); }
GS_INLINE std::uint32_t as_unsigned(std::int32_t number) { return static_cast<std::uint32_t>(number); }
GS_INLINE std::int32_t truncated(float x) { return static_cast<std::int32_t>(x); }

GS_INLINE float select(bool condition, float yes, float no) { return condition ? yes : no; }
GS_INLINE double select(bool condition, double yes, double no) { return condition ? yes : no; }
GS_INLINE std::int32_t select(bool condition, std::int32_t yes, std::int32_t no) { return condition ? yes : no; }
GS_INLINE std::uint32_t select(bool condition, std::uint32_t yes, std::uint32_t no) { return condition ? yes : no; }

GS_INLINE std::int32_t absolute(std::int32_t x) { return x < 0 ? -x : x; }
GS_INLINE std::int32_t larger_of(std::int32_t a, std::int32_t b) { return a < b ? b : a; }
GS_INLINE std::int32_t smaller_of(std::int32_t a, std::int32_t b) { return a < b ? a : b; }

GS_INLINE std::uint32_t increment_if(bool condition, std::uint32_t x) { return x + (condition ? 1 : 0); }

inline constexpr std::uint32_t kSign = 0x80000000, kInfinity = 0x7f800000, kNan = 0x7fc00000;

template <class Float>
GS_INLINE auto magnitude_of(Float x) {
  return bits_of(x) & ~kSign;
}

}  // namespace gradstep
