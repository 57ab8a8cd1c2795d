#pragma once

#include "codecs/codec.h"

namespace gradstep::codecs {

// The upper half of a float.
struct BFloat16 {
  using Storage = std::uint16_t;
  static constexpr const char* kName = "bfloat16";
  static constexpr CodecKind kKind = CodecKind::kNarrow;
  static constexpr unsigned kRoles = kAsParameter | kAsGradient | kAsState | kAsCopy;
  static constexpr int kRandomBits = 16;  // as many as are dropped

  static constexpr int kShift = 16;

  template <class Word>
  GS_INLINE static auto decode(Word code) {
    return float_of(code);
  }

  // With kHalf and kTie to nearest even; with random bits and 0, stochastically.
  static constexpr bool kRoundsEitherWay = true;
  static constexpr std::uint32_t kHalf = 0x7fff, kTie = 0x10000;  // half a unit, less than that; its last bit
  template <class Float, class Word>
  GS_INLINE static auto encode(Float x, Word added, std::uint32_t tie) {
    const auto bits = bits_of(x);
    const auto rounded = increment_if(as_signed(bits & tie) > 0, bits + added);
    // To NaN nothing is added, which could carry it into a number.
    return select(x != x, bits | 0x400000u, rounded);
  }
  template <class Float>
  GS_INLINE static auto encode(Float x) {
    return encode(x, kHalf, kTie);
  }
  template <class Float, class Word>
  GS_INLINE static auto encode(Float x, Word random) {
    return encode(x, random, 0u);
  }
};

}  // namespace gradstep::codecs
