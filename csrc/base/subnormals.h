#pragma once

#include <math.h>

#include "base/bits.h"

// What counts as zero where subnormals are flushed.
namespace gradstep {

// The square of a gradient from here on is normal, also where a moment takes no more than a thousandth of it.
template <class T>
inline constexpr T kLeastGradient = static_cast<T>(sizeof(T) == sizeof(float) ? 0x1p-56 : 0x1p-500);

// States from here on are normal.
template <class T>
inline constexpr T kLeastState = static_cast<T>(sizeof(T) == sizeof(float) ? 0x1p-126 : 0x1p-1022);

GS_INLINE float magnitude(float x) { return fabsf(x); }
GS_INLINE double magnitude(double x) { return fabs(x); }

template <class T, class V>
GS_INLINE V flushed(V x, T least) {
  return select(magnitude(x) < least, V(0), x);
}

}  // namespace gradstep
