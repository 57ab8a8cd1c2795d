#pragma once

#include <cstdint>

#include "base/macros.h"

// Powers computed with + - * / only: libm's pow and exp differ in their last bits from machine to machine.
namespace gradstep {

// base ** n for n >= 0, by repeated squaring.
GS_INLINE double power(double base, std::int64_t n) {
  double result = 1;
  for (; n > 0; n /= 2, base = base * base) {
    if (n % 2 == 1) result = result * base;
  }
  return result;
}

// 0.96 ** x for x >= 0, Nadam's momentum schedule: a power for the integer part, a Taylor series for the fraction.
GS_INLINE double momentum_schedule(double x) {
  if (x > 1e6) return 0;
  const auto whole = static_cast<std::int64_t>(x);
  const double r = (x - static_cast<double>(whole)) * -0.040821994520255166;  // ln 0.96
  double series = 1;
  for (int i = 12; i >= 1; --i) series = 1 + (r * series) / i;
  return power(0.96, whole) * series;
}

}  // namespace gradstep
