#pragma once

#include "base/power.h"
#include "rules/rule.h"

namespace gradstep::rules {

// Adam (Kingma and Ba, 2015); AMSGrad (Reddi, Kale and Kumar, 2018).
struct Adam {
  static constexpr const char* kName = "adam";
  static constexpr State kStates[] = {{"exp_avg"}, {"exp_avg_sq", kNonNegative}, {"max_exp_avg_sq", kNonNegative}};
  GS_OPTIONS(lr, beta1, beta2, eps, eps_root, amsgrad, bias_correction, eps_hat, amsgrad_corrected);
  static constexpr unsigned kAmsgrad = 0b100;
  using Variants = Values<0b011, 0b011 | kAmsgrad>;
  static unsigned variant(const Options& o) { return o.amsgrad != 0 ? 0b011 | kAmsgrad : 0b011; }

  template <class T, unsigned kVariant>
  struct Update {
    T beta1, one_minus_beta1, beta2, one_minus_beta2, eps, eps_root, unbias_before, unbias_after, rate;

    GS_INLINE Update(const Options& o, Clock& clock) {
      const double correction1 = o.bias_correction != 0 ? 1 - power(o.beta1, clock.t) : 1;
      const double correction2 = o.bias_correction != 0 ? 1 - power(o.beta2, clock.t) : 1;
      const bool before = o.eps_hat == 0 && o.amsgrad != 0 && o.amsgrad_corrected != 0;
      const bool after = o.eps_hat == 0 && !before;
      beta1 = static_cast<T>(o.beta1);
      one_minus_beta1 = static_cast<T>(1 - o.beta1);
      beta2 = static_cast<T>(o.beta2);
      one_minus_beta2 = static_cast<T>(1 - o.beta2);
      eps = static_cast<T>(o.eps);
      eps_root = static_cast<T>(o.eps_root);
      unbias_before = static_cast<T>(before ? 1 / correction2 : 1);
      unbias_after = static_cast<T>(after ? 1 / correction2 : 1);
      rate = static_cast<T>((o.eps_hat != 0 ? o.lr * root(correction2) : o.lr) / correction1);
    }

    template <class V>
    GS_INLINE void operator()(V& p, V g, V& m, V& v, V& x) const {
      m = blend(beta1, m, one_minus_beta1, g);
      v = blend(beta2, v, one_minus_beta2, square(g));
      V second = v;
      if constexpr (kVariant & kAmsgrad) second = x = larger(x, v * unbias_before);
      p = p - rate * (m / (root(second * unbias_after + eps_root) + eps));
    }
  };
};

}  // namespace gradstep::rules
