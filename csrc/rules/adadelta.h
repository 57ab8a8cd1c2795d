#pragma once

#include "rules/rule.h"

namespace gradstep::rules {

// AdaDelta (Zeiler, 2012).
struct AdaDelta {
  static constexpr const char* kName = "adadelta";
  static constexpr State kStates[] = {{"square_avg", kNonNegative}, {"acc_delta", kNonNegative}};
  GS_OPTIONS(lr, rho, eps);
  using Variants = Values<0b11>;
  static unsigned variant(const Options&) { return 0b11; }

  template <class T, unsigned>
  struct Update {
    T rho, one_minus_rho, eps, rate;

    GS_INLINE Update(const Options& o, Clock&)
        : rho(static_cast<T>(o.rho)),
          one_minus_rho(static_cast<T>(1 - o.rho)),
          eps(static_cast<T>(o.eps)),
          rate(static_cast<T>(o.lr)) {}

    template <class V>
    GS_INLINE void operator()(V& p, V g, V& a, V& u) const {
      a = blend(rho, a, one_minus_rho, square(g));
      const V d = root((u + eps) / (a + eps)) * g;  // one root of a quotient; the paper takes two roots
      u = blend(rho, u, one_minus_rho, square(d));
      p = p - rate * d;
    }
  };
};

}  // namespace gradstep::rules
