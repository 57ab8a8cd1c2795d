#pragma once

#include "base/bits.h"

namespace gradstep::codecs {

// The upper half of a float.
struct BFloat16 {
  using Storage = std::uint16_t;
  static constexpr const char* kName = "bfloat16";

  GS_INLINE static float decode(Storage code) { return float_of(std::uint32_t{code} << 16); }

  // To nearest even.
  GS_INLINE static Storage encode(float x) { return round(x, 0x7fff + ((bits_of(x) >> 16) & 1)); }

  static constexpr int kRandomBits = 16;  // as many as are dropped

  // Stochastically.
  GS_INLINE static Storage encode(float x, std::uint32_t r) { return round(x, r); }

 private:
  // To NaN nothing is added, which could carry it into a number.
  GS_INLINE static Storage round(float x, std::uint32_t up) {
    const std::uint32_t nan = mask(x != x);
    return static_cast<Storage>(((bits_of(x) + (up & ~nan)) | (nan & 0x400000)) >> 16);
  }
};

}  // namespace gradstep::codecs
