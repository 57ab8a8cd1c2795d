#pragma once

#include "rules/rule.h"

namespace gradstep::rules {

// RMSProp (Tieleman and Hinton, 2012), centered after Graves (2013).
struct RMSProp {
  static constexpr const char* kName = "rmsprop";
  static constexpr State kStates[] = {{"square_avg", kNonNegative}, {"grad_avg"}, {"momentum_buffer"}};
  GS_OPTIONS(lr, rho, momentum, centered, eps, eps_root, lr_in_velocity);
  static constexpr unsigned kCentered = 0b010, kMomentum = 0b100;
  using Variants = Values<0b001, 0b001 | kCentered, 0b001 | kMomentum, 0b001 | kCentered | kMomentum>;
  static unsigned variant(const Options& o) {
    return 0b001 | (o.centered != 0 ? kCentered : 0) | (o.momentum > 0 ? kMomentum : 0);
  }

  template <class T, unsigned kVariant>
  struct Update {
    T rho, one_minus_rho, eps, eps_root, momentum, weight, rate;

    GS_INLINE Update(const Options& o, Clock&) {
      const bool carries_lr = o.momentum > 0 && o.lr_in_velocity != 0;
      rho = static_cast<T>(o.rho);
      one_minus_rho = static_cast<T>(1 - o.rho);
      eps = static_cast<T>(o.eps);
      eps_root = static_cast<T>(o.eps_root);
      momentum = static_cast<T>(o.momentum);
      weight = static_cast<T>(carries_lr ? o.lr : 1);
      rate = static_cast<T>(carries_lr ? 1 : o.lr);
    }

    template <class V>
    GS_INLINE void operator()(V& p, V g, V& s, V& m, V& v) const {
      s = blend(rho, s, one_minus_rho, square(g));
      V variance = s;
      if constexpr (kVariant & kCentered) {
        m = blend(rho, m, one_minus_rho, g);
        variance = non_negative(s - square(m));  // rounding may make the difference negative
      }
      const V u = g / (root(variance + eps_root) + eps);
      if constexpr (kVariant & kMomentum) {
        v = blend(momentum, v, weight, u);
        p = p - rate * v;
      } else {
        p = p - rate * u;
      }
    }
  };
};

}  // namespace gradstep::rules
