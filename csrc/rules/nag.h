#pragma once

#include "rules/rule.h"

namespace gradstep::rules {

// Nesterov's accelerated gradient (Nesterov, 1983; Sutskever et al., 2013).
struct Nag {
  static constexpr const char* kName = "nag";
  static constexpr State kStates[] = {{"momentum_buffer"}};
  GS_OPTIONS(lr, momentum, lr_in_velocity, lookahead);
  static constexpr unsigned kLookahead = 1u << kMaxStates;  // the gradient was evaluated at the lookahead point
  using Variants = Values<0b1, 0b1 | kLookahead>;
  static unsigned variant(const Options& o) { return o.lookahead != 0 ? 0b1 | kLookahead : 0b1; }

  template <class T, unsigned kVariant>
  struct Update {
    T momentum, weight, rate;

    GS_INLINE Update(const Options& o, Clock&)
        : momentum(static_cast<T>(o.momentum)),
          weight(static_cast<T>(o.lr_in_velocity != 0 ? o.lr : 1)),
          rate(static_cast<T>(o.lr_in_velocity != 0 ? 1 : o.lr)) {}

    template <class V>
    GS_INLINE void operator()(V& p, V g, V& v) const {
      const V x = weight * g;
      v = momentum * v + x;
      if constexpr (kVariant & kLookahead) {
        p = p - rate * v;
      } else {
        p = p - rate * (x + momentum * v);
      }
    }
  };
};

}  // namespace gradstep::rules
