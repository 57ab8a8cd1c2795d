#pragma once

#include "rules/rule.h"

namespace gradstep::rules {

// Heavy-ball momentum (Polyak, 1964).
struct Momentum {
  static constexpr const char* kName = "momentum";
  static constexpr State kStates[] = {{"momentum_buffer"}};
  GS_OPTIONS(lr, momentum, dampening, lr_in_velocity, dampen_first);
  using Variants = Values<0b1>;
  static unsigned variant(const Options&) { return 0b1; }

  template <class T, unsigned>
  struct Update {
    T momentum, weight, rate;

    GS_INLINE Update(const Options& o, Clock& clock) {
      const double undamped = clock.t == 1 && o.dampen_first == 0 ? 1 : 1 - o.dampening;
      momentum = static_cast<T>(o.momentum);
      weight = static_cast<T>(o.lr_in_velocity != 0 ? o.lr * undamped : undamped);
      rate = static_cast<T>(o.lr_in_velocity != 0 ? 1 : o.lr);
    }

    template <class V>
    GS_INLINE void operator()(V& p, V g, V& v) const {
      v = blend(momentum, v, weight, g);
      p = p - rate * v;
    }
  };
};

}  // namespace gradstep::rules
