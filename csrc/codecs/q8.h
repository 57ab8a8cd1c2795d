#pragma once

#include "base/bits.h"

namespace gradstep::codecs {

// One byte an element: a small float of three bits of mantissa, whose exponent counts from that of its block's scale, a
// power of two. Signed: four bits of exponent and a sign; else five, and none. docs/numerics.md has the format, its
// error bound, and why no moment becomes zero that is divided by.
template <class Code>  // std::int8_t, std::uint8_t
struct Q8 {
  static constexpr bool kSigned = static_cast<Code>(-1) < 0;
  using Storage = std::uint8_t;
  using Number = Code;
  static constexpr const char* kName = kSigned ? "int8" : "uint8";

  // The scale of a block whose largest finite magnitude has these bits: so great that it rounds to no more than the
  // top, 1.875 scales.
  GS_INLINE static float scale(std::uint32_t largest) {
    const std::uint32_t u = (largest + 0x0fffff) & kInfinity;
    return float_of(u < kLeastScale ? kLeastScale : u == kInfinity ? kGreatestScale : u);
  }

  // Whether a block has magnitudes of such bits that are above the top of the greatest scale, or not finite.
  GS_INLINE static bool is_beyond(std::uint32_t largest) { return largest > kGreatestScale + 0x700000; }

  // What has no exponent: zero, and what is not finite. A block without it takes less.
  static constexpr Storage kZero = 0, kNotFinite = kSigned ? 128 : 248;
  GS_INLINE static bool is_special(Storage code) { return code == kZero || code == kNotFinite; }

  template <bool kSpecial>
  GS_INLINE static float decode(std::int32_t code, float scale) {
    const std::int32_t k = code < 0 ? -code : code;
    std::uint32_t u = bits_of(scale) - kExponents + (static_cast<std::uint32_t>(k) << 20);
    if constexpr (kSpecial) u = (u & ~mask(k == 0)) | (mask(k == kNotFinite) & (kSigned ? kNan : kInfinity));
    return float_of(u | (static_cast<std::uint32_t>(code) & kSign));
  }

  static constexpr int kRandomBits = 20;  // as many as are dropped

  // Stochastically. With kBeyond also what is_beyond() of a block's magnitudes; without, no x is negative where the
  // code has no sign.
  template <bool kBeyond>
  GS_INLINE static Storage encode(float x, float scale, std::uint32_t r) {
    const auto u = static_cast<std::int32_t>(kSigned || kBeyond ? magnitude_of(x) : bits_of(x));
    const std::uint32_t t = static_cast<std::uint32_t>(u) - (bits_of(scale) - kExponents);
    std::int32_t k = static_cast<std::int32_t>(t + r) >> 20;
    const std::int32_t least = kSigned ? 0 : (u < 1 ? u : 1);
    k = k < least ? least : k;
    if constexpr (kBeyond) {
      k = k < kNotFinite ? k : kNotFinite - 1;
      k = u < static_cast<std::int32_t>(kInfinity) ? k : kNotFinite;
    }
    if constexpr (kSigned) k = (bits_of(x) & kSign) != 0 ? -k : k;
    return static_cast<Storage>(k);
  }

 private:
  static constexpr std::uint32_t kExponents = (kSigned ? 15u : 30u) << 23;  // below the scale's
  static constexpr std::uint32_t kLeastScale = (1u << 23) + kExponents, kGreatestScale = 254u << 23;
  static_assert(kNotFinite == (kExponents + (1u << 23)) >> 20, "the exponent above the greatest");
};

using Q8Signed = Q8<std::int8_t>;
using Q8Unsigned = Q8<std::uint8_t>;

}  // namespace gradstep::codecs
