#pragma once

#include <cstdint>

#include "base/bits.h"

// Requirements on a codec:
//
//   struct X {
//     using Storage = std::uint16_t;                        // an item in memory
//     static constexpr const char* kName = "x";             // NumPy's name
//     static constexpr CodecKind kKind = CodecKind::kNarrow;
//     static constexpr unsigned kRoles = kAsParameter | ...; // the streams that may have this type
//     static constexpr int kRandomBits = 16;                // random bits that stochastic rounding needs
//     static constexpr int kShift = 0;                      // position of the item's lowest bit in a Word
//     template <class Word> static auto decode(Word code);  // returns a float
//     static Word encode(Float x);                          // rounds to nearest even
//     static Word encode(Float x, Word random);             // rounds stochastically
//     static constexpr bool kRoundsEitherWay = false;       // true if one encode() does both; see codecs/bfloat16.h
//   };
//
// Word is std::uint32_t and Float is float, or on a CPU vectors of these. Blocked codecs also have one scale per kBlock
// elements; see codecs/q8.h.
namespace gradstep {

enum class CodecKind : std::uint8_t {
  kNative,   // a compute type itself
  kNarrow,   // one value an item
  kBlocked,  // one value an item, under the scale of its block
};

// Roles: the streams that may be stored in a type.
inline constexpr unsigned kAsParameter = 1, kAsGradient = 2, kAsSignedState = 4, kAsNonNegativeState = 8, kAsCopy = 16,
                          kAsAverage = 32;
inline constexpr unsigned kAsState = kAsSignedState | kAsNonNegativeState;

}  // namespace gradstep
