#pragma once

#include "codecs/all.h"
#include "rules/rule.h"

namespace gradstep {

// How a step uses a stream, an array that it traverses element by element. `rounded`: values may be rounded
// stochastically on storing, with the stream's number in the key of the random bits; otherwise they are rounded to
// nearest.
struct Stream {
  unsigned roles;  // codecs must have one of these; codecs/codec.h
  bool read, written, rounded;
};

// THE list of streams: the parameter (or its master), the gradient, the rule's states, a copy of the parameter (with a
// master: the parameter itself), and an average of the parameter. A stream's number is its index here.
inline constexpr Stream kStreams[] = {
    {kAsParameter, true, true, true}, {kAsGradient, true, false, false}, {kAsState, true, true, true},
    {kAsState, true, true, true},     {kAsState, true, true, true},      {kAsCopy, false, true, false},
    {kAsAverage, true, true, false},
};
inline constexpr int kMaxStreams = sizeof kStreams / sizeof kStreams[0];

inline constexpr int kParameter = 0, kGradient = 1, kFirstState = 2, kCopy = kFirstState + rules::kMaxStates,
                     kAverage = kCopy + 1;

// The first so many streams are those of a rule's kernels. The others are processed after them, while the values of the
// parameter are in registers or in L1.
inline constexpr int kKernelStreams = kAverage;
constexpr bool is_state(int s) { return kStreams[s].roles == kAsState; }
static_assert(is_state(kFirstState) && is_state(kCopy - 1) && kStreams[kCopy].roles == kAsCopy &&
              kStreams[kAverage].roles == kAsAverage);

// Bit s is set if stream s is rounded. Device code cannot index the list with a run-time number.
constexpr unsigned rounded_streams() {
  unsigned bits = 0;
  for (int s = 0; s < kMaxStreams; ++s) bits |= static_cast<unsigned>(kStreams[s].rounded) << s;
  return bits;
}
inline constexpr unsigned kRoundedStreams = rounded_streams();

// The storage types of a tensor's streams as one number. Byte s is the DType of stream s, or 0xff if there is no such
// stream.
using StorageKey = std::uint64_t;
inline constexpr StorageKey kNoStreams = ~StorageKey{0};
static_assert(kMaxStreams <= static_cast<int>(sizeof(StorageKey)));

constexpr StorageKey with_stream(StorageKey storage, int s, DType dtype) {
  return (storage & ~(StorageKey{0xff} << (8 * s))) | static_cast<StorageKey>(dtype) << (8 * s);
}

}  // namespace gradstep
