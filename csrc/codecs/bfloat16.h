#pragma once

#include "codecs/codec.h"

namespace gradstep::codecs {

// bfloat16: the upper half of a float.
struct BFloat16 {
  using Storage = std::uint16_t;
  static constexpr const char* kName = "bfloat16";
  static constexpr CodecKind kKind = CodecKind::kNarrow;
  static constexpr unsigned kRoles = kAsParameter | kAsGradient | kAsState | kAsCopy;
  static constexpr int kRandomBits = 16;  // the number of dropped bits

  static constexpr int kShift = 16;

  template <class Word>
  GS_INLINE static auto decode(Word code) {
    return float_of(code);
  }

  // Rounds to nearest even with kHalf and kTie, and stochastically with random bits and 0.
  static constexpr bool kRoundsEitherWay = true;
  static constexpr std::uint32_t kHalf = 0x7fff, kTie = 0x10000;  // just below half a unit; the last bit kept
  template <class Float, class Word>
  GS_INLINE static auto encode(Float x, Word added, std::uint32_t tie) {
    const auto bits = bits_of(x);
    const auto rounded = increment_if(as_signed(bits & tie) > 0, bits + added);
    // Nothing is added to NaN: a carry could turn it into a number.
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
