#pragma once

#include <math.h>  // sqrtf from C compiles to one instruction with GCC and Clang

#include "base/bits.h"

// Building blocks of the rules. Each applies its operations in the order that docs/numerics.md gives. T is the type of
// scalars and V that of elements: T itself, or a vector of T on a CPU.
namespace gradstep::rules {

GS_INLINE float root(float x) { return sqrtf(x); }
GS_INLINE double root(double x) { return sqrt(x); }

template <class V>
GS_INLINE V square(V x) {
  return x * x;
}

// Exponential moving average: keep * moment + take * x.
template <class T, class V>
GS_INLINE V blend(T keep, V moment, T take, V x) {
  return keep * moment + take * x;
}

// A NaN `newcomer` is returned, so that NaN is not hidden.
template <class V>
GS_INLINE V larger(V kept, V newcomer) {
  return select(kept >= newcomer, kept, newcomer);
}

// x between -limit and limit; NaN stays NaN.
template <class T, class V>
GS_INLINE V clipped(V x, T limit) {
  return select(x > V(limit), V(limit), select(x < V(-limit), V(-limit), x));
}

template <class V>
GS_INLINE V non_negative(V x) {
  return select(x < V(0), V(0), x);
}

}  // namespace gradstep::rules
