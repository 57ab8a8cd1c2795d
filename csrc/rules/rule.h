#pragma once

#include <cstddef>
#include <cstdint>

#include "base/macros.h"
#include "base/subnormals.h"
#include "rules/moments.h"

// clang-format off
// Requirements on a rule. A rule describes the update of one element and is independent of storage, threads, devices and
// Python:
//
//   struct X {
//     static constexpr const char* kName = "x";
//     // Its states; {{nullptr}} if it has none.
//     static constexpr State kStates[] = {{"first"}, {"second", kNonNegative}, ...};
//     // Its scalars; omitted if it has none.
//     static constexpr Scalar kScalars[] = {{"first", 1}, ...};
//     // Its options, all double; lr is one of them.
//     GS_OPTIONS(lr, ...);
//     // The variants to instantiate, and the one that these options require. Bit k: state k is kept; the rule defines
//     // the higher bits.
//     using Variants = Values<...>;
//     static unsigned variant(const Options& o);
//     // The scalars of one step, rounded once to T, and the update of one element. A state that is not kept is a dummy
//     // argument. V is T, or a vector of T on a CPU: use only + - * / and rules/moments.h.
//     template <class T, unsigned kVariant> struct Update {
//       GS_INLINE Update(const Options& o, Clock& clock);
//       template <class V> GS_INLINE void operator()(V& p, V g, V& first, ...) const;
//     };
//   };
//
// docs/numerics.md documents the same arithmetic operation by operation.
// clang-format on
namespace gradstep::rules {

inline constexpr int kMaxStates = 3;
inline constexpr int kMaxScalars = 1;

// A state. The 8-bit codec of a state that is never negative has no sign bit.
struct State {
  const char* name;
  bool non_negative = false;
};
inline constexpr bool kNonNegative = true;

// A number in [0, 1] that each tensor carries from step to step; `first` is its value before the first step.
struct Scalar {
  const char* name;
  double first;
};

// Options are doubles; the extension reports their names. A bool is 0 or 1, None is NaN.
#define GS_OPTIONS(...)                                  \
  struct Options {                                       \
    double __VA_ARGS__;                                  \
    static constexpr const char kNames[] = #__VA_ARGS__; \
  }

template <unsigned... kVariants>
struct Values {};

template <class... Rules>
struct List {};

// The inputs of a step's scalars other than options.
struct Clock {
  std::int64_t t;               // this tensor's step number; the first step has t = 1
  double scalars[kMaxScalars];  // in the order of the rule's kScalars
  double ema_product;           // of the decays of the average so far
};

// Options common to all rules.
struct Common {
  GS_OPTIONS(l2, weight_decay, maximize, flush_subnormals, stochastic_rounding, clip_value, ema);

  // Whether gradients or states are bounded: flushed to zero, or clipped by value.
  static bool bounds(const Options& o) { return o.flush_subnormals != 0 || o.clip_value == o.clip_value; }
};

// To be called once a step: the share of its first value that an average still has.
GS_INLINE void advance_average(const Common::Options& c, Clock& clock) {
  if (c.ema == c.ema) clock.ema_product = clock.ema_product * c.ema;
}

inline constexpr std::size_t kMaxElementUpdate = 144;  // upper bound on sizeof(ElementUpdate)
inline constexpr int kMaxOptions = 24;                 // of a rule, the common ones included

// The complete update of one element. `Compute` is the type of its scalars; V is Compute or a vector of it.
template <class Rule, class Compute, unsigned kVariant, bool kL2, bool kBounds>
struct ElementUpdate {
  using T = Compute;
  using Options = typename Rule::Options;
  static constexpr int kStates =
      Rule::kStates[0].name == nullptr ? 0 : sizeof(Rule::kStates) / sizeof(Rule::kStates[0]);
  static constexpr bool kBounded = kBounds;
  static constexpr bool keeps(int state) { return (kVariant >> state) & 1u; }
  static constexpr bool non_negative(int state) { return Rule::kStates[state].non_negative; }

  T scale, l2, decay;             // with bounds, l2 is NaN where there is none
  T least_gradient, least_state;  // 0 disables flushing
  T most_gradient;                // infinity disables clipping
  typename Rule::template Update<T, kVariant> update;

  // Gradients are multiplied by `factor` before anything else.
  GS_INLINE ElementUpdate(const Common::Options& c, const Options& o, Clock& clock, double factor)
      : scale((c.maximize != 0 ? T(-1) : T(1)) * static_cast<T>(factor)),
        l2(kBounds && c.l2 == 0 ? static_cast<T>(NAN) : static_cast<T>(c.l2)),
        decay(static_cast<T>(1 - o.lr * c.weight_decay)),
        least_gradient(c.flush_subnormals != 0 ? kLeastGradient<T> : T(0)),
        least_state(c.flush_subnormals != 0 ? kLeastState<T> : T(0)),
        most_gradient(c.clip_value == c.clip_value ? static_cast<T>(c.clip_value) : static_cast<T>(HUGE_VAL)),
        update(o, clock) {}

  template <class V, class... States>
  GS_INLINE void operator()(V& p, V g, States&... states) const {
    if constexpr (kBounds) g = flushed(g, least_gradient);
    g = scale * g;
    if constexpr (kBounds) g = clipped(g, most_gradient);
#if defined(__CUDA_ARCH__)
    if constexpr (kL2) g = g + l2 * p;
#else
    if constexpr (kL2 && kBounds) {
      g = select(V(l2) == V(l2), g + l2 * p, g);  // serves both cases; see rules/all.h
    } else if constexpr (kL2) {
      g = g + l2 * p;
    }
#endif
    p = decay * p;
    update(p, g, states...);
    if constexpr (kBounds) ((states = flushed(states, least_state)), ...);
  }
};

}  // namespace gradstep::rules
