#pragma once

#include "base/compute.h"
#include "rules/adadelta.h"
#include "rules/adagrad.h"
#include "rules/adam.h"
#include "rules/momentum.h"
#include "rules/nadam.h"
#include "rules/nag.h"
#include "rules/rmsprop.h"
#include "rules/sgd.h"

namespace gradstep::rules {

// THE list of rules. Dispatch, bindings, tests, benchmarks and docs enumerate it; a rule's number is its index here.
using All = List<Sgd, Momentum, Nag, AdaGrad, RMSProp, AdaDelta, Adam, Nadam>;

// Identifies one compiled update: rule, variant, L2, bounds of values and compute type.
struct Key {
  int rule;
  unsigned variant;
  bool l2, bounds;
  Compute compute;

  bool operator==(const Key& other) const {
    return rule == other.rule && variant == other.variant && l2 == other.l2 && bounds == other.bounds &&
           compute == other.compute;
  }
};

// Dispatches a run-time rule number to the compile-time rule: returns f.visit<Rule>().
GS_HOST_FUNCTIONS template <class F, class First, class... Rest>
GS_INLINE auto visit_rule(int number, const F& f, List<First, Rest...>) {
  if constexpr (sizeof...(Rest) > 0) {
    if (number != 0) return visit_rule(number - 1, f, List<Rest...>{});
  }
  return f.template visit<First>();
}

// What visit() instantiates. On devices, where code size is limited, the instantiation with bounds serves both cases.
// As keyed, those with bounds, which few steps need, serve steps with and without l2: a tenth of the extension.
enum class Bounding { kAsKeyed, kAlways };

template <Bounding kBounding, class F>
struct VisitElementUpdate {
  const Key& key;
  const F& f;

  GS_HOST_FUNCTIONS template <class Rule>
  GS_INLINE auto visit() const {
    using Variants = typename Rule::Variants;
    return key.compute == Compute::kDouble ? choose<Rule, double>(Variants{}) : choose<Rule, float>(Variants{});
  }

  GS_HOST_FUNCTIONS template <class Rule, class T, unsigned kFirst, unsigned... kRest>
  GS_INLINE auto choose(Values<kFirst, kRest...>) const {
    if constexpr (sizeof...(kRest) > 0) {
      if (key.variant != kFirst) return choose<Rule, T>(Values<kRest...>{});
    }
    return key.l2 ? choose<Rule, T, kFirst, true>() : choose<Rule, T, kFirst, false>();
  }

  GS_HOST_FUNCTIONS template <class Rule, class T, unsigned kVariant, bool kL2>
  GS_INLINE auto choose() const {
    if constexpr (kBounding == Bounding::kAsKeyed) {
      if (!key.bounds) return f.template visit<ElementUpdate<Rule, T, kVariant, kL2, false>>();
      return f.template visit<ElementUpdate<Rule, T, kVariant, true, true>>();
    } else {
      return f.template visit<ElementUpdate<Rule, T, kVariant, kL2, true>>();
    }
  }
};

// Dispatches a run-time key to the compile-time update: returns f.visit<ElementUpdate<...>>().
GS_HOST_FUNCTIONS template <Bounding kBounding = Bounding::kAsKeyed, class F>
GS_INLINE auto visit(const Key& key, const F& f) {
  return visit_rule(key.rule, VisitElementUpdate<kBounding, F>{key, f}, All{});
}

}  // namespace gradstep::rules
