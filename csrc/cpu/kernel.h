#pragma once

#include <cstddef>
#include <cstdint>

#include "rules/all.h"

namespace gradstep::cpu {

// Updates elements [begin, end) of packed streams in the compute type, apart from one another; a state that is not kept
// is null. `element` is the rules::Element that the kernel was compiled for. `prefetches` changes no bit.
using Kernel = void (*)(const void* element, std::byte* const* streams, std::int64_t begin, std::int64_t end,
                        bool prefetches);

}  // namespace gradstep::cpu
