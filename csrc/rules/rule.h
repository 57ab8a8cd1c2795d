#pragma once

#include <cstddef>
#include <cstdint>

#include "base/macros.h"
#include "base/subnormals.h"
#include "rules/moments.h"

// clang-format off
// What a rule supplies. It knows one element, and nothing of storage, threads, devices or Python:
//
//   struct X {
//     static constexpr const char* kName = "x";
//     // Its states; {{nullptr}} where it has none.
//     static constexpr State kStates[] = {{"first"}, {"second", kNonNegative}, ...};
//     // Its scalars; left out where it has none.
//     static constexpr Scalar kScalars[] = {{"first", 1}, ...};
//     // Its options, all double; lr is one of them.
//     GS_OPTIONS(lr, ...);
//     // The instantiations worth having, and which of them these options need. Bit k: state k is kept; higher bits are its own.
//     using Variants = Values<...>;
//     static unsigned variant(const Options& o);
//     // The scalars of one step, rounded once to T, and one element's update. A state that is not kept is a dummy. V is
//     // T, or on a CPU a vector of T: use + - * / and rules/moments.h alone.
//     template <class T, unsigned kVariant> struct Update {
//       GS_INLINE Update(const Options& o, Clock& clock);
//       template <class V> GS_INLINE void operator()(V& p, V g, V& first, ...) const;
//     };
//   };
//
// docs/numerics.md writes the same arithmetic operation by operation.
// clang-format on
namespace gradstep::rules {

inline constexpr int kMaxStates = 3;
inline constexpr int kMaxScalars = 1;

// A state's name, and whether it can be below zero: an 8-bit code spends a bit on that.
struct State {
  const char* name;
  bool non_negative = false;
};
inline constexpr bool kNonNegative = true;

// A number from 0 to 1 that each tensor carries from step to step, and what it is before the first.
struct Scalar {
  const char* name;
  double first;
};

// Options are doubles whose names the extension reports; a bool is 0 or 1, and None is NaN.
#define GS_OPTIONS(...)                                  \
  struct Options {                                       \
    double __VA_ARGS__;                                  \
    static constexpr const char kNames[] = #__VA_ARGS__; \
  }

template <unsigned... kVariants>
struct Values {};

template <class... Rules>
struct List {};

// What a step's scalars depend on besides options.
struct Clock {
  std::int64_t t;               // this tensor's step number, 1 at its first
  double scalars[kMaxScalars];  // the rule's, in its order
};

// Options that all rules have.
struct Common {
  GS_OPTIONS(l2, weight_decay, maximize, flush_subnormals, stochastic_rounding);
};

inline constexpr std::size_t kMaxElementUpdate = 128;  // bytes of an ElementUpdate
inline constexpr int kMaxOptions = 24;                 // of a rule and of all together

// The whole update of one element, in the order in which its parts are applied. `Compute` is the type of its scalars; V
// is that type, or a vector of it.
template <class Rule, class Compute, unsigned kVariant, bool kL2, bool kFlush>
struct ElementUpdate {
  using T = Compute;
  using Options = typename Rule::Options;
  static constexpr int kStates =
      Rule::kStates[0].name == nullptr ? 0 : sizeof(Rule::kStates) / sizeof(Rule::kStates[0]);
  static constexpr bool kFlushes = kFlush;
  static constexpr bool keeps(int state) { return (kVariant >> state) & 1u; }
  static constexpr bool non_negative(int state) { return Rule::kStates[state].non_negative; }

  T scale, l2, decay;
  T least_gradient, least_state;  // 0: nothing is flushed
  typename Rule::template Update<T, kVariant> update;

  // Gradients are multiplied by `factor` before all else.
  GS_INLINE ElementUpdate(const Common::Options& c, const Options& o, Clock& clock, double factor)
      : scale((c.maximize != 0 ? T(-1) : T(1)) * static_cast<T>(factor)),
        l2(static_cast<T>(c.l2)),
        decay(static_cast<T>(1 - o.lr * c.weight_decay)),
        least_gradient(c.flush_subnormals != 0 ? kLeastGradient<T> : T(0)),
        least_state(c.flush_subnormals != 0 ? kLeastState<T> : T(0)),
        update(o, clock) {}

  template <class V, class... States>
  GS_INLINE void operator()(V& p, V g, States&... states) const {
    if constexpr (kFlush) g = flushed(g, least_gradient);
    g = scale * g;
    if constexpr (kL2) g = g + l2 * p;
    p = decay * p;
    update(p, g, states...);
    if constexpr (kFlush) ((states = flushed(states, least_state)), ...);
  }
};

}  // namespace gradstep::rules
