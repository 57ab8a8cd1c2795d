#pragma once

#include "codecs/all.h"
#include "cpu/noise.h"
#include "cpu/prefetch.h"
#include "cpu/simd_convert.h"

// Access<Codec> reads and writes a stream that is stored with a codec. A loop processes runs of elements: it calls
// enter() before a run, load() and store() by position within the run, and leave() after it. Included by files compiled
// once per instruction set, hence the anonymous namespace.
namespace gradstep::cpu {
namespace {

// Calls f(type, j) for each full register of `count` elements, then for each remaining element. If `count` equals the
// constant kWhole, registers are Unrolled, and the loop is unrolled kUnroll times.
template <class T, std::int64_t kWhole = 0, class Unrolled = Full<T>, int kUnroll = 4, bool kShort = false, class F>
GS_INLINE void each_register(std::int64_t count, const F& f) {
  constexpr std::int64_t kLanes = Full<T>::kLanes;
  std::int64_t j = 0;
  if (kWhole > 0 && count == kWhole) {
    GS_UNROLL(1)
    for (; j < kWhole; j += kUnroll * Unrolled::kLanes) {
      GS_UNROLL(16)
      for (int n = 0; n < kUnroll; ++n) f(Unrolled{}, j + n * Unrolled::kLanes);
    }
    return;
  }
  GS_UNROLL(1)
  for (; j + kLanes <= count; j += kLanes) f(Full<T>{}, j);
  if constexpr (kShort && kHasShort) {
    GS_UNROLL(1)
    for (; j + Short<T>::kLanes <= count; j += Short<T>::kLanes) f(Short<T>{}, j);
  }
  GS_UNROLL(1)
  for (; j < count; ++j) f(T{}, j);
}

// A state that the rule does not keep, or an absent copy.
struct NoStream {
  static constexpr bool kInRuns = false;

  GS_INLINE void enter(std::int64_t, std::int64_t) {}
  template <std::int64_t>
  GS_INLINE void prefetch_run() const {}
  template <class V>
  GS_INLINE V load(std::int64_t) const {
    return V(0);
  }
  template <class V>
  GS_INLINE void store(std::int64_t, V) {}
  GS_INLINE void leave(std::int64_t, std::int64_t) {}
};

template <class Codec, CodecKind = Codec::kKind>
class Access;

template <class Codec>
class Access<Codec, CodecKind::kNative> {
 public:
  using T = typename Codec::Storage;
  static constexpr bool kInRuns = false;

  GS_INLINE Access(std::byte* data, float*, const Noise*, float*) : data_(reinterpret_cast<T*>(data)) {}

  GS_INLINE void enter(std::int64_t begin, std::int64_t) { run_ = data_ + begin; }
  template <std::int64_t kRun>
  GS_INLINE void prefetch_run() const {
    prefetch<kRun>(run_);
  }
  template <class V>
  GS_INLINE V load(std::int64_t j) const {
    return cpu::load<V>(run_ + j);
  }
  template <class V>
  GS_INLINE void store(std::int64_t j, V x) {
    cpu::store(run_ + j, x);
  }
  GS_INLINE void leave(std::int64_t, std::int64_t) {}

 private:
  T *data_, *run_ = nullptr;
};

// Replaces random bits where a codec with kRoundsEitherWay rounds to nearest.
template <class Codec>
struct Halves {
  std::uint32_t all[kGroup];
  constexpr Halves() : all() {
    for (std::uint32_t& half : all) half = Codec::kHalf;
  }
};
template <class Codec>
constexpr Halves<Codec> kHalves;
constexpr std::uint32_t kNoGroups[Noise::kGroups] = {};

// One value per item. Runs begin at multiples of kGroup and have at most kGroup elements. Without noise, values are
// rounded to nearest.
template <class Codec>
class Access<Codec, CodecKind::kNarrow> {
 public:
  using Storage = typename Codec::Storage;
  static constexpr bool kInRuns = true;

  GS_INLINE Access(std::byte* data, float*, const Noise* noise, float*) : data_(reinterpret_cast<Storage*>(data)) {
    if constexpr (Codec::kRoundsEitherWay) {
      places_ = noise == nullptr ? kHalves<Codec>.all : noise->places;
      groups_ = noise == nullptr ? kNoGroups : noise->groups;
      tie_ = noise == nullptr ? Codec::kTie : 0;
    }
  }

  GS_INLINE void enter(std::int64_t begin, std::int64_t) {
    run_ = data_ + begin;
    if constexpr (Codec::kRoundsEitherWay) group_ = groups_[Noise::group_of(begin)];
  }
  template <std::int64_t kRun>
  GS_INLINE void prefetch_run() const {
    prefetch<kRun>(run_);
  }
  template <class V>
  GS_INLINE V load(std::int64_t j) const {
    return load_as<V>(Codec{}, run_ + j);
  }
  template <class V>
  GS_INLINE void store(std::int64_t j, V x) {
    if constexpr (Codec::kRoundsEitherWay) {
      const auto random = cpu::load<decltype(bits_of(x))>(places_ + j) ^ group_;
      store_words<Codec::kShift>(run_ + j, Codec::encode(x, random, tie_));
    } else {
      store_as(Codec{}, run_ + j, x);
    }
  }
  GS_INLINE void leave(std::int64_t, std::int64_t) {}

 private:
  Storage *data_, *run_ = nullptr;
  const std::uint32_t *places_ = nullptr, *groups_ = nullptr;
  std::uint32_t group_ = 0, tie_ = 0;
};

// Whether any code stands for zero or for a value that is not finite.
template <class Codec>
GS_INLINE bool has_special(const typename Codec::Storage* codes, std::int64_t count) {
  using Codes = Full<typename Codec::Storage>;
  typename Codes::Mask special(0);
  std::int64_t j = 0;
  for (; j + Codes::kLanes <= count; j += Codes::kLanes) {
    special = special | Codec::is_special(load<Codes>(codes + j));
  }
  bool found = any(special);
  for (; j < count; ++j) found = found || Codec::is_special(codes[j]);
  return found;
}

template <bool kSpecial, class Codec>
GS_INLINE void decode_block_as(Codec, const typename Codec::Storage* codes, std::int64_t count, float scale,
                               float* values) {
  each_register<float, kBlock>(count, [=](auto type, std::int64_t j) GS_ALWAYS_INLINE {
    const auto code = as_signed(load_words<decltype(type), 0>(codes + j));
    store(values + j, Codec::template decode<kSpecial>(code, scale));
  });
}

template <class Codec>
GS_CALLED void decode_block(const typename Codec::Storage* codes, std::int64_t count, float scale, float* values) {
  if (has_special<Codec>(codes, count)) {
    decode_block_as<true>(Codec{}, codes, count, scale, values);
  } else {
    decode_block_as<false>(Codec{}, codes, count, scale, values);
  }
}

// Accumulates the bits of the largest magnitude. Magnitudes compare as their bits do, also as signed integers.
class Largest {
 public:
  GS_INLINE void add(Floats x) { in_lanes_ = larger_of(in_lanes_, as_signed(magnitude_of(x))); }
  GS_INLINE void add(float x) { rest_ = larger_of(rest_, as_signed(magnitude_of(x))); }
  GS_INLINE std::uint32_t bits() const {
    std::int32_t lanes[Integers::kLanes];
    store(lanes, in_lanes_);
    for (int half = Integers::kLanes / 2; half > 0; half /= 2) {
      for (int lane = 0; lane < half; ++lane) lanes[lane] = larger_of(lanes[lane], lanes[lane + half]);
    }
    return as_unsigned(larger_of(lanes[0], rest_));
  }

 private:
  Integers in_lanes_{0};
  std::int32_t rest_ = 0;
};

GS_INLINE std::uint32_t largest_of(const float* values, std::int64_t count) {
  Largest most;
  each_register<float, kBlock>(
      count, [&](auto type, std::int64_t j) GS_ALWAYS_INLINE { most.add(load<decltype(type)>(values + j)); });
  return most.bits();
}

GS_INLINE std::uint32_t largest_finite_of(const float* values, std::int64_t count) {
  std::uint32_t most = 0;
  for (std::int64_t j = 0; j < count; ++j) {
    const std::uint32_t u = magnitude_of(values[j]);
    most = u > most && u < kInfinity ? u : most;
  }
  return most;
}

// random(type, j) returns the random bits of the register, or the element, at j.
template <class Codec, bool kBeyond, class Random>
GS_INLINE void encode_block_as(const float* values, std::int64_t count, float scale, const Random& random,
                               typename Codec::Storage* codes) {
  each_register<float, kGroup>(count, [=](auto type, std::int64_t j) GS_ALWAYS_INLINE {
    using V = decltype(type);
    store_words<0>(codes + j, Codec::template encode<kBeyond>(cpu::load<V>(values + j), scale, random(type, j)));
  });
}

// Encodes the block that begins at element `begin` and whose largest magnitude has the bits `most`. Without noise,
// values are rounded to nearest. Returns the block's scale.
template <class Codec>
GS_CALLED float encode_block(const float* values, std::int64_t count, std::uint32_t most, const Noise* noise,
                             std::int64_t begin, typename Codec::Storage* codes) {
  const bool beyond = Codec::is_beyond(most) || noise == nullptr;  // values from outside a step may be negative
  if (most >= kInfinity) most = largest_finite_of(values, count);
  const float scale = Codec::scale(most);
  if (noise == nullptr) {
    const auto half = [](auto type, std::int64_t)
                          GS_ALWAYS_INLINE { return decltype(bits_of(type))(1u << (Codec::kRandomBits - 1)); };
    encode_block_as<Codec, true>(values, count, scale, half, codes);
    return scale;
  }
  const std::uint32_t* const groups = noise->groups + Noise::group_of(begin);
  for (std::int64_t first = 0; first < count; first += kGroup) {
    const std::uint32_t group = groups[first / kGroup];
    const auto random = [=](auto type, std::int64_t j)
                            GS_ALWAYS_INLINE { return cpu::load<decltype(bits_of(type))>(noise->places + j) ^ group; };
    const std::int64_t size = count - first < kGroup ? count - first : kGroup;
    if (beyond) {
      encode_block_as<Codec, true>(values + first, size, scale, random, codes + first);
    } else {
      encode_block_as<Codec, false>(values + first, size, scale, random, codes + first);
    }
  }
  return scale;
}

// One value per item, relative to the scale of its block. Values stay in L1 until the largest magnitude of their block
// is known. Runs have kGroup elements; the first begins a block.
template <class Codec>
class Access<Codec, CodecKind::kBlocked> {
 public:
  using Storage = typename Codec::Storage;
  static constexpr bool kInRuns = true;

  GS_INLINE Access(std::byte* data, float* scales, const Noise* noise, float* values)
      : data_(reinterpret_cast<Storage*>(data)), scales_(scales), noise_(noise), values_(values) {}

  GS_INLINE void enter(std::int64_t begin, std::int64_t end) {
    run_ = data_ + begin;
    place_ = static_cast<std::int64_t>(static_cast<std::uint64_t>(begin) % kBlock);
    if (place_ != 0) return;
    block_ = begin;
    count_ = end - begin < kBlock ? end - begin : kBlock;
    largest_ = Largest();
    decode_block<Codec>(run_, count_, scales_[begin / kBlock], values_);
  }
  template <std::int64_t kRun>
  GS_INLINE void prefetch_run() const {
    prefetch<kRun>(run_);
  }
  template <class V>
  GS_INLINE V load(std::int64_t j) const {
    return cpu::load<V>(values_ + place_ + j);
  }
  template <class V>
  GS_INLINE void store(std::int64_t j, V x) {
    largest_.add(x);
    cpu::store(values_ + place_ + j, x);
  }
  GS_INLINE void leave(std::int64_t next, std::int64_t end) {
    if (static_cast<std::uint64_t>(next) % kBlock != 0 && next != end) return;
    scales_[block_ / kBlock] = encode_block<Codec>(values_, count_, largest_.bits(), noise_, block_, data_ + block_);
  }

 private:
  Storage *data_, *run_ = nullptr;
  float* scales_;
  const Noise* noise_;
  std::int64_t block_ = 0, count_ = 0, place_ = 0;
  Largest largest_;
  float* values_;  // kBlock floats; as an array member they would keep the other members out of registers
};

}  // namespace
}  // namespace gradstep::cpu
