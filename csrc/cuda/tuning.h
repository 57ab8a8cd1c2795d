#pragma once

#include <cstddef>

#include "exec/norm.h"

// Tuning parameters for GPUs, each with the measurement that chose it. Results do not depend on them.
namespace gradstep::cuda {

// Warps per thread block. A thread block processes one chunk, four blocks of elements per warp. With this an H100
// streams float32 at 97 to 100 % of the rate of a copy; other values have not been measured.
inline constexpr int kWarps = 4;
static_assert(kChunk % (kWarps * kBlock) == 0);

// The number of thread blocks that must fit on a multiprocessor: no more than the registers allow without spilling.
// Chosen from the compiler's reports for sm_75 to sm_120, not from timings.
template <class ElementUpdate>
constexpr bool kHasThreeStates = ElementUpdate::keeps(1) && ElementUpdate::keeps(2);
template <class ElementUpdate>
constexpr int kMinBlocks =
    sizeof(typename ElementUpdate::T) == sizeof(double)  ? (kHasThreeStates<ElementUpdate> ? 2 : 3)
    : kHasThreeStates<ElementUpdate>                     ? 4
    : ElementUpdate::keeps(1) || ElementUpdate::keeps(2) ? 5
                                                         : 8;
template <class ElementUpdate>
constexpr int kMinBlocksStored = ElementUpdate::keeps(1) ? 3 : 4;

// Tensors per launch. A launch takes at most 32 KB of arguments; launches of few tensors use fewer, which cost less.
// Not measured.
inline constexpr std::size_t kMostBytes = 32764;
inline constexpr int kFew = 320, kMany = 3400;

}  // namespace gradstep::cuda
