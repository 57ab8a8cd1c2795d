#pragma once

#include "codecs/codec.h"

namespace gradstep::codecs {

// One byte per element: a small float with a 3-bit mantissa, whose exponent is relative to the scale of its block, a
// power of two. The signed code has a sign bit and a 4-bit exponent, the unsigned code a 5-bit exponent.
// docs/numerics.md describes the format and its error bound, and why no moment that is a divisor becomes zero.
template <class Code>  // std::int8_t, std::uint8_t
struct Q8 {
  static constexpr bool kSigned = static_cast<Code>(-1) < 0;
  using Storage = Code;
  static constexpr const char* kName = kSigned ? "int8" : "uint8";
  static constexpr CodecKind kKind = CodecKind::kBlocked;
  static constexpr unsigned kRoles = kSigned ? kAsSignedState : kAsNonNegativeState;
  static constexpr int kRandomBits = 20;  // the number of dropped bits

  // The scale of a block whose largest finite magnitude has these bits: large enough that this magnitude rounds to at
  // most the largest code, 1.875 scales.
  GS_INLINE static float scale(std::uint32_t largest) {
    const std::uint32_t u = (largest + 0x0fffff) & kInfinity;
    return float_of(u < kLeastScale ? kLeastScale : u == kInfinity ? kGreatestScale : u);
  }

  // Whether the largest magnitude of a block, given as bits, exceeds the largest code at the greatest scale or is not
  // finite.
  GS_INLINE static bool is_beyond(std::uint32_t largest) { return largest > kGreatestScale + 0x700000; }

  // The codes without an exponent: zero and not finite. Blocks without them decode faster.
  static constexpr Code kZero = 0, kNotFinite = static_cast<Code>(kSigned ? 128 : 248);
  template <class C>
  GS_INLINE static auto is_special(C code) {
    return (code == C(kZero)) | (code == C(kNotFinite));
  }

  // `code` is a std::int32_t or a vector of them.
  template <bool kSpecial, class Int>
  GS_INLINE static auto decode(Int code, float scale) {
    const Int k = kSigned ? absolute(code) : code;
    auto u = (as_unsigned(k) << 20) + (bits_of(scale) - kExponents);
    if constexpr (kSpecial) {
      using Word = decltype(u);
      u = select(k == 0, Word(0), select(k == kNoNumber, Word(kSigned ? kNan : kInfinity), u));
    }
    if constexpr (kSigned) u = u | (as_unsigned(code) & kSign);
    return float_of(u);
  }

  // Rounds stochastically. kBeyond allows magnitudes for which is_beyond() is true; without it, x must not be negative
  // if the code is unsigned.
  template <bool kBeyond, class Float, class Word>
  GS_INLINE static auto encode(Float x, float scale, Word random) {
    const auto bits = bits_of(x);
    const auto u = as_signed(kSigned || kBeyond ? magnitude_of(x) : bits);
    using Int = decltype(as_signed(bits_of(x)));
    Int k = as_signed(as_unsigned(u) - (bits_of(scale) - kExponents) + random) >> 20;
    k = larger_of(k, kSigned ? Int(0) : smaller_of(u, Int(1)));
    if constexpr (kBeyond) {
      k = smaller_of(k, Int(kNoNumber - 1));
      k = select(u < as_signed(kInfinity), k, Int(kNoNumber));
    }
    if constexpr (kSigned) k = select(as_signed(bits) < 0, -k, k);
    return as_unsigned(k);
  }

 private:
  static constexpr std::int32_t kNoNumber = kSigned ? 128 : 248;            // the magnitude of kNotFinite
  static constexpr std::uint32_t kExponents = (kSigned ? 15u : 30u) << 23;  // offset from the scale's exponent
  static constexpr std::uint32_t kLeastScale = (1u << 23) + kExponents, kGreatestScale = 254u << 23;
  static_assert(kNoNumber == (kExponents + (1u << 23)) >> 20, "the exponent above the greatest");
};

using Q8Signed = Q8<std::int8_t>;
using Q8Unsigned = Q8<std::uint8_t>;

}  // namespace gradstep::codecs
