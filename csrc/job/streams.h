#pragma once

#include "rules/rule.h"

namespace gradstep {

// The arrays that a step walks along, element by element.
inline constexpr int kMaxStreams = 3 + rules::kMaxStates;  // parameter, gradient, states, copy of the parameter
inline constexpr int kParameter = 0;
inline constexpr int kGradient = 1;  // the one that is only read
inline constexpr int kFirstState = 2;
inline constexpr int kCopy = kMaxStreams - 1;  // and the one that is only written

}  // namespace gradstep
