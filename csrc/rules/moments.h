#pragma once

#include <math.h>  // the C functions: GCC and Clang turn sqrtf into one instruction

#include "base/macros.h"

// The vocabulary of the rules. Every line is one operation after the other, as docs/numerics.md writes it.
namespace gradstep::rules {

GS_INLINE float root(float x) { return sqrtf(x); }
GS_INLINE double root(double x) { return sqrt(x); }

template <class T>
GS_INLINE T square(T x) {
  return x * x;
}

// A moment that forgets: keep * moment + take * x.
template <class T>
GS_INLINE T blend(T keep, T moment, T take, T x) {
  return keep * moment + take * x;
}

// NaN in the newcomer wins, so that it is not hidden.
template <class T>
GS_INLINE T larger(T kept, T newcomer) {
  return kept >= newcomer ? kept : newcomer;
}

template <class T>
GS_INLINE T not_negative(T x) {
  return x < T(0) ? T(0) : x;
}

}  // namespace gradstep::rules
