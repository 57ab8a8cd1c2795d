#pragma once

#include <cstddef>

#include "exec/norm.h"

// The numbers that speed on a GPU depends on, and nothing else, each with the measurement that chose it.
namespace gradstep::cuda {

// The warps of a thread block, which takes a chunk: each goes around it four times. An H100 streams float32 at 97 to
// 100 % of a copy so; other numbers were not measured.
inline constexpr int kWarps = 4;
static_assert(kChunk % (kWarps * kBlock) == 0);

// Thread blocks that shall fit on a multiprocessor at once. No more than registers allow: the compiler would spill some
// to fit one more. Chosen by its reports for sm_75 to sm_120, not by times.
template <class ElementUpdate>
constexpr bool kHasThreeStates = ElementUpdate::keeps(1) && ElementUpdate::keeps(2);
template <class ElementUpdate>
constexpr int kFit = sizeof(typename ElementUpdate::T) == sizeof(double)  ? (kHasThreeStates<ElementUpdate> ? 2 : 3)
                     : kHasThreeStates<ElementUpdate>                     ? 4
                     : ElementUpdate::keeps(1) || ElementUpdate::keeps(2) ? 5
                                                                          : 8;
template <class ElementUpdate>
constexpr int kFitStored = kHasThreeStates<ElementUpdate> ? 3 : 4;

// The tensors of one launch. A launch takes 32 KB of arguments, and lists that fit into less do not pay for them. Not
// measured.
inline constexpr std::size_t kMostBytes = 32764;
inline constexpr int kFew = 320, kMany = 3400;

}  // namespace gradstep::cuda
