#pragma once

#include <cstdint>

#include "base/macros.h"

namespace gradstep {

struct FourWords {
  std::uint32_t w0, w1, w2, w3;
};

// Philox4x32-7 (Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", 2011): four random words
// from a counter of four words and a key of two. Seven rounds are the fewest that pass BigCrush.
GS_INLINE FourWords philox(FourWords c, std::uint32_t key0, std::uint32_t key1) {
  GS_UNROLL(7)
  for (int round = 0; round < 7; ++round) {
    const std::uint64_t x = std::uint64_t{0xD2511F53} * c.w0, y = std::uint64_t{0xCD9E8D57} * c.w2;
    c = {static_cast<std::uint32_t>(y >> 32) ^ c.w1 ^ key0, static_cast<std::uint32_t>(y),
         static_cast<std::uint32_t>(x >> 32) ^ c.w3 ^ key1, static_cast<std::uint32_t>(x)};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return c;
}

}  // namespace gradstep
