#pragma once

#include "codecs/codec.h"

namespace gradstep::codecs {

// IEEE binary16: a 10-bit mantissa and a 5-bit exponent.
struct Float16 {
  using Storage = std::uint16_t;
  static constexpr const char* kName = "float16";
  static constexpr CodecKind kKind = CodecKind::kNarrow;
  static constexpr unsigned kRoles = kAsParameter | kAsGradient | kAsState | kAsCopy;
  static constexpr int kRandomBits = 16;
  static constexpr bool kRoundsEitherWay = false;
  static constexpr int kShift = 0;

  template <class Word>
  GS_INLINE static auto decode(Word code) {
    const Word u = (code & 0x7fffu) << 13;
    const auto subnormal = float_of(u + (kBias + (1u << 23))) - kLeastNormal;
    const Word normal =
        u + select(below(u, 0x7c00u << 13), Word(kBias), Word(2 * kBias));  // infinity and NaN: set all exponent bits
    return float_of(select(below(u, 1u << 23), bits_of(subnormal), normal) | ((code & 0x8000u) << 16));
  }

  // Rounds to nearest even. Adding 1/2 rounds a subnormal correctly, because the last bit of the sum is the unit of
  // subnormals, 2^-24.
  template <class Float>
  GS_INLINE static auto encode(Float x) {
    const auto u = magnitude_of(x);
    const auto subnormal = bits_of(float_of(u) + 0.5f) - bits_of(0.5f);
    return finish(x, subnormal, u + 0xfffu + ((u >> 13) & 1u));
  }

  // Rounds stochastically. A normal number drops 13 bits; a subnormal one is counted in units of 2^-24, with 16 bits
  // after the binary point.
  template <class Float, class Word>
  GS_INLINE static Word encode(Float x, Word random) {
    const Word u = magnitude_of(x);
    const Word units = as_unsigned(truncated(float_of(select(is_subnormal(u), u, Word(0))) * 0x1p40f));
    return finish(x, (units + random) >> 16, u + (random >> 3));
  }

 private:
  static constexpr std::uint32_t kBias = (127u - 15u) << 23;
  static constexpr float kLeastNormal = 0x1p-14f;

  // Magnitudes fit into signed integers, whose comparison every instruction set has.
  template <class Word>
  GS_INLINE static auto below(Word magnitude, std::uint32_t limit) {
    return as_signed(magnitude) < as_signed(limit);
  }
  template <class Word>
  GS_INLINE static auto is_subnormal(Word magnitude) {
    return below(magnitude, bits_of(kLeastNormal));
  }

  // Selects `subnormal`, the code of a subnormal result, or `rounded`, the bits of a normal one after rounding but
  // before its 13 low bits are dropped.
  template <class Float, class Word>
  GS_INLINE static Word finish(Float x, Word subnormal, Word rounded) {
    const Word u = magnitude_of(x);
    Word code = select(is_subnormal(u), subnormal, (rounded - kBias) >> 13);
    code = select(below(u, bits_of(65536.0f)), code, select(x != x, Word(0x7e00u), Word(0x7c00u)));
    return code | ((bits_of(x) & kSign) >> 16);
  }
};

}  // namespace gradstep::codecs
