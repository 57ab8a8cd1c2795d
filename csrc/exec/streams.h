#pragma once

#include "codecs/all.h"
#include "rules/rule.h"

namespace gradstep {

// What a step does with a stream, an array that it walks along element by element. `rounded`: what is written may be
// rounded stochastically, with the stream's number in the key of its random bits; else it is rounded to nearest.
struct Stream {
  unsigned roles;  // by which codecs are chosen; codecs/codec.h
  bool read, written, rounded;
};

// THE list of streams: the parameter (or its master), the gradient, the rule's states, and the parameter where it is
// the rounding of a master. A stream's number is its place here.
inline constexpr Stream kStreams[] = {
    {kAsParameter, true, true, true}, {kAsGradient, true, false, false}, {kAsState, true, true, true},
    {kAsState, true, true, true},     {kAsState, true, true, true},      {kAsCopy, false, true, false},
};
inline constexpr int kMaxStreams = sizeof kStreams / sizeof kStreams[0];

inline constexpr int kParameter = 0, kGradient = 1, kFirstState = 2, kCopy = kFirstState + rules::kMaxStates;
constexpr bool is_state(int s) { return kStreams[s].roles == kAsState; }
static_assert(is_state(kFirstState) && is_state(kCopy - 1) && kStreams[kCopy].roles == kAsCopy);

// Bit s: stream s is rounded. In a device's code the list cannot be indexed by a number that is not a constant.
constexpr unsigned rounded_streams() {
  unsigned bits = 0;
  for (int s = 0; s < kMaxStreams; ++s) bits |= static_cast<unsigned>(kStreams[s].rounded) << s;
  return bits;
}
inline constexpr unsigned kRoundedStreams = rounded_streams();

// How all streams of a tensor are stored, as one number: a byte for each, its DType; 0xff: there is no such stream.
using StorageKey = std::uint64_t;
inline constexpr StorageKey kNoStreams = ~StorageKey{0};
static_assert(kMaxStreams <= static_cast<int>(sizeof(StorageKey)));

constexpr StorageKey with_stream(StorageKey storage, int s, DType dtype) {
  return (storage & ~(StorageKey{0xff} << (8 * s))) | static_cast<StorageKey>(dtype) << (8 * s);
}

}  // namespace gradstep
