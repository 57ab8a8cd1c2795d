#pragma once

#include <cstdint>

#include "codecs/all.h"

// THE table of storage combinations that kernels decode and encode in registers. All others go through tiles, with the
// same bits. Time saved over tiles on an EPYC of Zen 4, 16 million elements (AVX-512 on one thread, AVX-512 on two,
// AVX2 on two): bfloat16 states 35, 23, 10 %; bfloat16 parameters and gradients 36, 14, 18 %; with a master 15, 8, 4 %;
// all bfloat16 39, 36, 16 %; with a master 33, 23, 0 %; q8 states 16, 8, 22 %; bfloat16 and q8 19, 24, 17 %; with a
// master 19, 23, 10 %; float16 22, 8, 9 %; with a master 13, 5, 0 %.
namespace gradstep::cpu {

// Every: the same codec for all states. Q8: the signed or the unsigned 8-bit codec, as the state requires.
template <class Codec>
struct Every {
  template <bool kNonNegative>
  using Of = Codec;
};
template <bool kNonNegative>
struct ByteOf {
  using Type = std::int8_t;
};
template <>
struct ByteOf<true> {
  using Type = std::uint8_t;
};
struct Q8 {
  template <bool kNonNegative>
  using Of = codecs::Q8<typename ByteOf<kNonNegative>::Type>;
};

// Stands for the codec of an absent stream.
struct None {};

// The codecs of the parameter, the gradient and the states, and of the rounded parameter if Parameter is a master.
template <class Parameter_, class Gradient_, class States_, class Copy_ = None>
struct Combination {
  using Parameter = Parameter_;
  using Gradient = Gradient_;
  using States = States_;
  using Copy = Copy_;
  static constexpr bool kNative = false;
};

template <class Codec>
struct Native : Combination<Codec, Codec, Every<Codec>> {
  static constexpr bool kNative = true;
};

template <class... Combinations>
struct CombinationList {
  static constexpr int kCount = sizeof...(Combinations);
};

using Combinations =
    CombinationList<Combination<codecs::Float32, codecs::Float32, Every<codecs::BFloat16>>,
                    Combination<codecs::BFloat16, codecs::BFloat16, Every<codecs::Float32>>,
                    Combination<codecs::Float32, codecs::BFloat16, Every<codecs::Float32>, codecs::BFloat16>,
                    Combination<codecs::BFloat16, codecs::BFloat16, Every<codecs::BFloat16>>,
                    Combination<codecs::Float32, codecs::BFloat16, Every<codecs::BFloat16>, codecs::BFloat16>,
                    Combination<codecs::Float32, codecs::Float32, Q8>,
                    Combination<codecs::BFloat16, codecs::BFloat16, Q8>,
                    Combination<codecs::Float32, codecs::BFloat16, Q8, codecs::BFloat16>,
                    Combination<codecs::Float16, codecs::Float16, Every<codecs::Float32>>,
                    Combination<codecs::Float32, codecs::Float16, Every<codecs::Float32>, codecs::Float16>>;

}  // namespace gradstep::cpu
