#pragma once

#include "rules/rule.h"

namespace gradstep::rules {

// AdaGrad (Duchi, Hazan and Singer, 2011).
struct AdaGrad {
  static constexpr const char* kName = "adagrad";
  static constexpr State kStates[] = {{"sum", kNonNegative}};
  GS_OPTIONS(lr, lr_decay, eps, eps_root);
  using Variants = Values<0b1>;
  static unsigned variant(const Options&) { return 0b1; }

  template <class T, unsigned>
  struct Update {
    T rate, eps, eps_root;

    GS_INLINE Update(const Options& o, Clock& clock)
        : rate(static_cast<T>(o.lr / (1 + static_cast<double>(clock.t - 1) * o.lr_decay))),
          eps(static_cast<T>(o.eps)),
          eps_root(static_cast<T>(o.eps_root)) {}

    template <class V>
    GS_INLINE void operator()(V& p, V g, V& a) const {
      a = a + square(g);
      p = p - rate * (g / (root(a + eps_root) + eps));
    }
  };
};

}  // namespace gradstep::rules
