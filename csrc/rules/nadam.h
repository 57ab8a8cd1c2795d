#pragma once

#include "base/power.h"
#include "rules/rule.h"

namespace gradstep::rules {

// Nadam (Dozat, 2016).
struct Nadam {
  static constexpr const char* kName = "nadam";
  static constexpr State kStates[] = {{"exp_avg"}, {"exp_avg_sq", kNonNegative}};
  static constexpr Scalar kScalars[] = {{"mu_product", 1}};
  GS_OPTIONS(lr, beta1, beta2, eps, eps_root, momentum_decay, float32_product);
  using Variants = Values<0b11>;
  static unsigned variant(const Options&) { return 0b11; }

  // The momentum of step i; constant if momentum_decay is None.
  GS_INLINE static double mu(const Options& o, std::int64_t i) {
    if (o.momentum_decay != o.momentum_decay) return o.beta1;
    return o.beta1 * (1 - 0.5 * momentum_schedule(static_cast<double>(i) * o.momentum_decay));
  }

  GS_INLINE static double multiplied(const Options& o, double product, double mu) {
    return o.float32_product != 0 ? static_cast<float>(product) * static_cast<float>(mu) : product * mu;
  }

  template <class T, unsigned>
  struct Update {
    T beta1, one_minus_beta1, beta2, one_minus_beta2, momentum_rate, gradient_rate, unbias, eps, eps_root;

    GS_INLINE Update(const Options& o, Clock& clock) {
      const double mu_now = mu(o, clock.t), mu_next = mu(o, clock.t + 1);
      const double product = clock.scalars[0] = multiplied(o, clock.scalars[0], mu_now);
      beta1 = static_cast<T>(o.beta1);
      one_minus_beta1 = static_cast<T>(1 - o.beta1);
      beta2 = static_cast<T>(o.beta2);
      one_minus_beta2 = static_cast<T>(1 - o.beta2);
      momentum_rate = static_cast<T>((o.lr * mu_next) / (1 - product * mu_next));
      gradient_rate = static_cast<T>((o.lr * (1 - mu_now)) / (1 - product));
      unbias = static_cast<T>(1 / (1 - power(o.beta2, clock.t)));
      eps = static_cast<T>(o.eps);
      eps_root = static_cast<T>(o.eps_root);
    }

    template <class V>
    GS_INLINE void operator()(V& p, V g, V& m, V& v) const {
      m = blend(beta1, m, one_minus_beta1, g);
      v = blend(beta2, v, one_minus_beta2, square(g));
      p = p - (momentum_rate * m + gradient_rate * g) / (root(v * unbias + eps_root) + eps);
    }
  };
};

}  // namespace gradstep::rules
