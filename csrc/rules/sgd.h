#pragma once

#include "rules/rule.h"

namespace gradstep::rules {

// Stochastic gradient descent (Robbins and Monro, 1951).
struct Sgd {
  static constexpr const char* kName = "sgd";
  static constexpr State kStates[] = {{nullptr}};
  GS_OPTIONS(lr);
  using Variants = Values<0>;
  static unsigned variant(const Options&) { return 0; }

  template <class T, unsigned>
  struct Update {
    T lr;

    GS_INLINE Update(const Options& o, Clock&) : lr(static_cast<T>(o.lr)) {}

    template <class V>
    GS_INLINE void operator()(V& p, V g) const {
      p = p - lr * g;
    }
  };
};

}  // namespace gradstep::rules
