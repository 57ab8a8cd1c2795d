#pragma once

#include <cstddef>
#include <cstdint>

#include "rules/all.h"

namespace gradstep::cpu {

inline constexpr int kMaxStreams = 2 + rules::kMaxStates;  // parameter, gradient, states
inline constexpr int kGradient = 1;                        // the one that is only read

// Updates elements [begin, end) of packed streams in the compute type, apart from one another; a state that is not kept
// is null. `element` is the rules::Element that the kernel was compiled for.
using Kernel = void (*)(const void* element, std::byte* const* streams, std::int64_t begin, std::int64_t end);

// Sets to zero those of `size` values whose magnitude is below `least`.
using Flush = void (*)(std::byte* values, std::int64_t size, double least);

}  // namespace gradstep::cpu
