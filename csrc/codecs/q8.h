#pragma once

#include "codecs/codec.h"

namespace gradstep::codecs {

// One byte an element: a small float of three bits of mantissa, whose exponent counts from that of its block's scale, a
// power of two. Signed: four bits of exponent and a sign; else five, and none. docs/numerics.md has the format, its
// error bound, and why no moment becomes zero that is divided by.
template <class Code>  // std::int8_t, std::uint8_t
struct Q8 {
  static constexpr bool kSigned = static_cast<Code>(-1) < 0;
  using Storage = Code;
  static constexpr const char* kName = kSigned ? "int8" : "uint8";
  static constexpr CodecKind kKind = CodecKind::kBlocked;
  static constexpr unsigned kRoles = kSigned ? kAsSignedState : kAsNonNegativeState;
  static constexpr int kRandomBits = 20;  // as many as are dropped

  // The scale of a block whose largest finite magnitude has these bits: so great that it rounds to no more than the
  // top, 1.875 scales.
  GS_INLINE static float scale(std::uint32_t largest) {
    const std::uint32_t u = (largest + 0x0fffff) & kInfinity;
    return float_of(u < kLeastScale ? kLeastScale : u == kInfinity ? kGreatestScale : u);
  }

  // Whether a block has magnitudes of such bits that are above the top of the greatest scale, or not finite.
  GS_INLINE static bool is_beyond(std::uint32_t largest) { return largest > kGreatestScale + 0x700000; }

  // What has no exponent: zero, and what is not finite. A block without it takes less.
  static constexpr Code kZero = 0, kNotFinite = static_cast<Code>(kSigned ? 128 : 248);
  template <class C>
  GS_INLINE static auto is_special(C code) {
    return (code == C(kZero)) | (code == C(kNotFinite));
  }

  // `code` is as an std::int32_t, or a vector of them.
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

  // Stochastically. With kBeyond also what is_beyond() of a block's magnitudes; without, no x is negative where the
  // code has no sign.
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
  static constexpr std::uint32_t kExponents = (kSigned ? 15u : 30u) << 23;  // below the scale's
  static constexpr std::uint32_t kLeastScale = (1u << 23) + kExponents, kGreatestScale = 254u << 23;
  static_assert(kNoNumber == (kExponents + (1u << 23)) >> 20, "the exponent above the greatest");
};

using Q8Signed = Q8<std::int8_t>;
using Q8Unsigned = Q8<std::uint8_t>;

}  // namespace gradstep::codecs
