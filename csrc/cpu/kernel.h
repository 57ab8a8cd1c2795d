#pragma once

#include <cstddef>
#include <cstdint>

#include "rules/all.h"

namespace gradstep::cpu {

inline constexpr int kMaxStreams = 3 + rules::kMaxStates;  // parameter, gradient, states, copy of the parameter
inline constexpr int kParameter = 0;
inline constexpr int kGradient = 1;  // the one that is only read
inline constexpr int kFirstState = 2;
inline constexpr int kCopy = kMaxStreams - 1;  // and the one that is only written

// Updates elements [begin, end) of packed streams in the compute type, apart from one another; a state that is not kept
// is null. `element` is the rules::Element that the kernel was compiled for.
using Kernel = void (*)(const void* element, std::byte* const* streams, std::int64_t begin, std::int64_t end);

}  // namespace gradstep::cpu
