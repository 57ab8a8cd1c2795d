#pragma once

#include <cstdint>

#include "codecs/all.h"

// THE table of combinations of storage that kernels decode and encode in registers. Whatever is in no line goes through
// tiles, with the same bits. benchmarks/results has what each line gains.
namespace gradstep::cpu {

// A codec for every state; and the 8-bit one of a state's sign.
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

// In place of a codec: there is no such stream.
struct None {};

// How the parameter, the gradient and the states are stored, and the copy of a parameter that is a master.
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
                    Combination<codecs::Float16, codecs::Float16, Every<codecs::Float32>>,
                    Combination<codecs::Float32, codecs::Float16, Every<codecs::Float32>, codecs::Float16>>;

}  // namespace gradstep::cpu
