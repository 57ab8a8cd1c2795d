#pragma once

#include <math.h>

#include "base/bits.h"

// Thresholds below which values are flushed to zero.
namespace gradstep {

// The square of a gradient of at least this magnitude is normal, even after multiplication by a moment's weight of
// 1/1000.
template <class T>
inline constexpr T kLeastGradient = static_cast<T>(sizeof(T) == sizeof(float) ? 0x1p-56 : 0x1p-500);

// The smallest normal number.
template <class T>
inline constexpr T kLeastState = static_cast<T>(sizeof(T) == sizeof(float) ? 0x1p-126 : 0x1p-1022);

GS_INLINE float magnitude(float x) { return fabsf(x); }
GS_INLINE double magnitude(double x) { return fabs(x); }

template <class T, class V>
GS_INLINE V flushed(V x, T least) {
  return select(magnitude(x) < least, V(0), x);
}

}  // namespace gradstep
