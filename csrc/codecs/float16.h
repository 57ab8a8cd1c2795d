#pragma once

#include "base/bits.h"

namespace gradstep::codecs {

// IEEE binary16: ten bits of mantissa, five of exponent.
struct Float16 {
  using Storage = std::uint16_t;
  static constexpr const char* kName = "float16";

  GS_INLINE static float decode(Storage code) {
    const std::uint32_t u = (code & 0x7fffu) << 13;
    const float subnormal = float_of(u + kBias + (1u << 23)) - kLeastNormal;
    const std::uint32_t normal =
        u + kBias + (mask(u >= 0x7c00u << 13) & kBias);  // infinity and NaN have all exponent bits
    return float_of(choose(u < 1u << 23, bits_of(subnormal), normal) | ((code & 0x8000u) << 16));
  }

  // To nearest even. A sum with 1/2 has the unit of subnormals, 2^-24, as its last bit.
  GS_INLINE static Storage encode(float x) {
    const std::uint32_t u = magnitude_of(x);
    const std::uint32_t subnormal = bits_of(float_of(u) + 0.5f) - bits_of(0.5f);
    return finish(x, subnormal, u + 0xfff + ((u >> 13) & 1));
  }

  static constexpr int kRandomBits = 16;

  // Stochastically. A normal number drops 13 bits; a subnormal one counts units of 2^-24, to 16 bits after the point.
  GS_INLINE static Storage encode(float x, std::uint32_t r) {
    const std::uint32_t u = magnitude_of(x);
    const auto units = static_cast<std::int32_t>(float_of(u & mask(is_subnormal(u))) * 0x1p40f);
    return finish(x, (static_cast<std::uint32_t>(units) + r) >> 16, u + (r >> 3));
  }

 private:
  static constexpr std::uint32_t kBias = (127u - 15u) << 23;
  static constexpr float kLeastNormal = 0x1p-14f;

  // Of bits as they are compared: magnitudes fit into signed numbers, for which every processor can.
  GS_INLINE static bool below(std::uint32_t magnitude, float limit) {
    return static_cast<std::int32_t>(magnitude) < static_cast<std::int32_t>(bits_of(limit));
  }
  GS_INLINE static bool is_subnormal(std::uint32_t magnitude) { return below(magnitude, kLeastNormal); }

  // From the code that a subnormal has, and the bits, with what rounding added, of which a normal number drops 13.
  GS_INLINE static Storage finish(float x, std::uint32_t subnormal, std::uint32_t rounded) {
    const std::uint32_t u = magnitude_of(x);
    std::uint32_t code = choose(is_subnormal(u), subnormal, (rounded - kBias) >> 13);
    code = choose(below(u, 65536.0f), code, 0x7c00) | (mask(x != x) & 0x200);
    return static_cast<Storage>(code | ((bits_of(x) & kSign) >> 16));
  }
};

}  // namespace gradstep::codecs
