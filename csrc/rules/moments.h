#pragma once

#include <math.h>  // the C functions: GCC and Clang turn sqrtf into one instruction

#include "base/bits.h"

// The vocabulary of the rules. Every line is one operation after the other, as docs/numerics.md writes it. T is the
// type of scalars, and V that of elements: T itself, or on a CPU a vector of them.
namespace gradstep::rules {

GS_INLINE float root(float x) { return sqrtf(x); }
GS_INLINE double root(double x) { return sqrt(x); }

template <class V>
GS_INLINE V square(V x) {
  return x * x;
}

// A moment that forgets: keep * moment + take * x.
template <class T, class V>
GS_INLINE V blend(T keep, V moment, T take, V x) {
  return keep * moment + take * x;
}

// NaN in the newcomer wins, so that it is not hidden.
template <class V>
GS_INLINE V larger(V kept, V newcomer) {
  return select(kept >= newcomer, kept, newcomer);
}

template <class V>
GS_INLINE V non_negative(V x) {
  return select(x < V(0), V(0), x);
}

}  // namespace gradstep::rules
