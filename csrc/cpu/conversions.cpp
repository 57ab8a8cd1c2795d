// The loops over codecs, compiled once per row of cmake/isa.cmake, as cpu/kernels.cpp is and under the same rules:
// everything in an anonymous namespace and always inlined.
#include "cpu/conversions.h"

#include "base/subnormals.h"
#include "cpu/lanes.h"
#include "cpu/prefetch.h"

namespace gradstep::cpu {
namespace {

// The words of counters [begin, end), which have the same upper half, each word at its counter's place modulo
// kCounters.
template <int kCounters>
GS_INLINE void draw_counters(const Noise& noise, Kind kind, std::int64_t begin, std::int64_t end,
                             std::uint32_t (&words)[4][kCounters]) {
  const auto low = static_cast<std::uint32_t>(begin / kCounters * kCounters);
  const std::uint32_t upper = upper_half(noise, kind, begin);
  const int drop = 32 - noise.bits;
  const auto first = static_cast<std::uint32_t>(begin % kCounters);
  const std::uint32_t last = first + static_cast<std::uint32_t>(end - begin);
  for (std::uint32_t n = first; n < last; ++n) {
    const Words w = draw(noise, low + n, upper);
    words[0][n] = w.w0 >> drop;
    words[1][n] = w.w1 >> drop;
    words[2][n] = w.w2 >> drop;
    words[3][n] = w.w3 >> drop;
  }
}

void draw_places(Noise& noise) {
  std::uint32_t words[4][kPlaceCounters];
  draw_counters(noise, kOfPlace, 0, kPlaceCounters, words);
  __builtin_memcpy(noise.places, words, sizeof words);
}

void draw_groups(Noise& noise, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kCounters = Noise::kGroups / 4, kElements = 4 * kGroup;  // of one counter
  std::uint32_t words[4][kCounters];
  const std::int64_t first = begin / kElements, last = (end + kElements - 1) / kElements;
  draw_counters(noise, kOfGroup, first, last, words);
  for (std::int64_t n = first; n < last; ++n) {
    for (int word = 0; word < 4; ++word) noise.groups[n % kCounters * 4 + word] = words[word][n % kCounters];
  }
}

// visit(i, r) for each of `size` elements from `first`, a multiple of kGroup, on, with its random bits.
template <class Visit>
GS_INLINE void each_random(const Noise& noise, std::int64_t first, std::int64_t size, const Visit& visit) {
  const std::uint32_t* const GS_RESTRICT groups = noise.groups + first / kGroup % Noise::kGroups;
  for (std::int64_t begin = 0; begin < size; begin += kGroup) {
    const std::int64_t count = size - begin < kGroup ? size - begin : kGroup;
    const std::uint32_t group = groups[begin / kGroup];
    for (std::int64_t place = 0; place < count; ++place) visit(begin + place, noise.places[place] ^ group);
  }
}

// visit(begin, count) for each block of `size` elements. Whole blocks, whose count the compiler knows, have their own.
template <class Visit>
GS_INLINE void each_block(std::int64_t size, const Visit& visit) {
  std::int64_t begin = 0;
  for (; begin + kBlock <= size; begin += kBlock) visit(begin, kBlock);
  if (begin < size) visit(begin, size - begin);
}

template <class Codec>
void decode_items(const std::byte* stored, const float*, std::int64_t size, float* GS_RESTRICT values) {
  const auto* const GS_RESTRICT codes = reinterpret_cast<const typename Codec::Storage*>(stored);
  std::int64_t i = decode_registers(Codec{}, codes, size, values);
  for (; i < size; ++i) values[i] = Codec::decode(codes[i]);
}

template <class Codec>
void encode_items(const float* GS_RESTRICT values, std::int64_t size, const Noise* noise, std::int64_t first,
                  std::byte* stored, float*) {
  auto* const GS_RESTRICT codes = reinterpret_cast<typename Codec::Storage*>(stored);
  if (noise == nullptr) {
    std::int64_t i = encode_registers(Codec{}, values, size, codes);
    for (; i < size; ++i) codes[i] = Codec::encode(values[i]);
    return;
  }
  each_block(size, [=](std::int64_t begin, std::int64_t count) GS_ALWAYS_INLINE {
    each_random(*noise, first + begin, count, [=](std::int64_t i, std::uint32_t r) GS_ALWAYS_INLINE {
      codes[begin + i] = Codec::encode(values[begin + i], r);
    });
  });
}

template <class Codec>
void decode_blocks(const std::byte* stored, const float* scales, std::int64_t size, float* GS_RESTRICT values) {
  const auto* const GS_RESTRICT codes = reinterpret_cast<const typename Codec::Storage*>(stored);
  each_block(size, [=](std::int64_t begin, std::int64_t count) GS_ALWAYS_INLINE {
    const float scale = scales[begin / kBlock];
    unsigned char special = 0;
    for (std::int64_t i = begin; i < begin + count; ++i) special |= Codec::is_special(codes[i]);
    std::int32_t wide[kBlock];
    widen_all<typename Codec::Number>(codes + begin, count, wide);
    if (special == 0) {
      for (std::int64_t i = 0; i < count; ++i) values[begin + i] = Codec::template decode<false>(wide[i], scale);
    } else {
      for (std::int64_t i = 0; i < count; ++i) values[begin + i] = Codec::template decode<true>(wide[i], scale);
    }
  });
}

// The bits of the largest magnitude below a limit.
GS_INLINE std::uint32_t largest(const float* values, std::int64_t size, std::uint32_t limit) {
  std::int32_t most = 0;  // magnitudes are in the order of their bits, also as signed numbers
  for (std::int64_t i = 0; i < size; ++i) {
    const auto u = static_cast<std::int32_t>(magnitude_of(values[i]));
    most = u > most && static_cast<std::uint32_t>(u) < limit ? u : most;
  }
  return static_cast<std::uint32_t>(most);
}

// Noise that is none: half a unit, so to nearest.
template <class Codec>
constexpr std::uint32_t kHalf = 1u << (Codec::kRandomBits - 1);

template <class Codec, bool kBeyond>
GS_INLINE void encode_block(const float* GS_RESTRICT values, std::int64_t size, float scale, const Noise* noise,
                            std::int64_t first, typename Codec::Storage* GS_RESTRICT codes) {
  if (noise == nullptr) {
    for (std::int64_t i = 0; i < size; ++i) codes[i] = Codec::template encode<kBeyond>(values[i], scale, kHalf<Codec>);
    return;
  }
  each_random(*noise, first, size, [=](std::int64_t i, std::uint32_t r) GS_ALWAYS_INLINE {
    codes[i] = Codec::template encode<kBeyond>(values[i], scale, r);
  });
}

template <class Codec>
void encode_blocks(const float* values, std::int64_t size, const Noise* noise, std::int64_t first, std::byte* stored,
                   float* scales) {
  auto* const codes = reinterpret_cast<typename Codec::Storage*>(stored);
  each_block(size, [=](std::int64_t begin, std::int64_t count) GS_ALWAYS_INLINE {
    std::uint32_t most = largest(values + begin, count, ~0u);
    const bool beyond = Codec::is_beyond(most) || noise == nullptr;  // no step, and so any numbers
    if (most >= kInfinity) most = largest(values + begin, count, kInfinity);
    const float scale = scales[begin / kBlock] = Codec::scale(most);
    if (beyond) {
      encode_block<Codec, true>(values + begin, count, scale, noise, first + begin, codes + begin);
    } else {
      encode_block<Codec, false>(values + begin, count, scale, noise, first + begin, codes + begin);
    }
  });
}

template <class T>
void flush(std::byte* values, std::int64_t size, double least) {
  T* const x = reinterpret_cast<T*>(values);
  const T limit = static_cast<T>(least);
  for (std::int64_t i = 0; i < size; ++i) x[i] = flushed(x[i], limit);
}

template <class T>
void add_squares(const std::byte* values, std::int64_t size, double* GS_RESTRICT lanes, bool prefetches) {
  constexpr std::int64_t kRun = kPrefetchRun<T>;
  static_assert(kSumLanes % kRun == 0);
  const T* const GS_RESTRICT x = reinterpret_cast<const T*>(values);
  const auto add = [=](std::int64_t begin, std::int64_t first, std::int64_t count) GS_ALWAYS_INLINE {
    for (std::int64_t i = 0; i < count; ++i) {
      const double value = x[begin + i];
      lanes[first + i] = lanes[first + i] + value * value;
    }
  };
  std::int64_t begin = 0;
  for (; begin + kRun <= size; begin += kRun) {
    if (prefetches) prefetch(x + begin);
    add(begin, begin % kSumLanes, kRun);
  }
  add(begin, begin % kSumLanes, size - begin);
}

// The loops that a codec needs; the native ones need none.
constexpr Conversion conversion(codecs::Float32) { return {}; }
constexpr Conversion conversion(codecs::Float64) { return {}; }
template <class Codec>
constexpr Conversion conversion(Codec) {
  return {&decode_items<Codec>, &encode_items<Codec>};
}
template <class Code>
constexpr Conversion conversion(codecs::Q8<Code>) {
  return {&decode_blocks<codecs::Q8<Code>>, &encode_blocks<codecs::Q8<Code>>};
}

}  // namespace

#define GS_JOIN_(a, b) a##b
#define GS_JOIN(a, b) GS_JOIN_(a, b)

// cpu/isa.cpp declares it for every row of the table.
const Conversions& GS_JOIN(conversions_, GS_ISA)() {
#define GS_CONVERSION(name, Codec) conversion(codecs::Codec{}),
  static constexpr Conversions all{
      {GS_CODECS(GS_CONVERSION)}, &draw_places,        &draw_groups, &flush<float>, &flush<double>,
      &add_squares<float>,        &add_squares<double>};
#undef GS_CONVERSION
  return all;
}

}  // namespace gradstep::cpu
