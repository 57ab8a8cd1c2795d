#pragma once

#include <cstdint>

#include "base/bits.h"

// What a codec declares of itself, and supplies:
//
//   struct X {
//     using Storage = std::uint16_t;                        // an item in memory
//     static constexpr const char* kName = "x";             // NumPy's
//     static constexpr CodecKind kKind = CodecKind::kNarrow;
//     static constexpr unsigned kRoles = kAsParameter | ...; // the streams that may be stored so
//     static constexpr int kRandomBits = 16;                // that rounding a value stochastically takes
//     static constexpr int kShift = 0;                      // the bits of a Word below the item's
//     template <class Word> static auto decode(Word code);  // to a float,
//     static Word encode(Float x);                          // to nearest even, and
//     static Word encode(Float x, Word random);             // stochastically
//     static constexpr bool kRoundsEitherWay = false;       // whether it has one piece of code for both, bfloat16's
//   };
//
// A Word is a std::uint32_t, and a Float a float; on a CPU they are also vectors of them. Blocked codecs have a scale
// for each kBlock elements besides; see codecs/q8.h.
namespace gradstep {

enum class CodecKind : std::uint8_t {
  kNative,   // the compute type itself
  kNarrow,   // one value an item
  kBlocked,  // one value an item, under the scale of its block
};

// The streams of a tensor that may be stored in a type.
inline constexpr unsigned kAsParameter = 1, kAsGradient = 2, kAsSignedState = 4, kAsNonNegativeState = 8, kAsCopy = 16;
inline constexpr unsigned kAsState = kAsSignedState | kAsNonNegativeState;

}  // namespace gradstep
