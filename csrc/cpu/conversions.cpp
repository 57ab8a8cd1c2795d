// The loops over codecs, compiled once per row of cmake/isa.cmake. The rules of cpu/kernels.cpp apply: everything is in
// an anonymous namespace and always inlined.
#include "cpu/conversions.h"

#include "cpu/access.h"
#include "rules/moments.h"

namespace gradstep::cpu {
namespace {

// Draws the words of counters [begin, end), which have the same second word. The words of counter n are stored at index
// n % kCounters.
template <int kCounters>
GS_INLINE void draw_counters(const Noise& noise, Kind kind, std::int64_t begin, std::int64_t end,
                             std::uint32_t (&words)[4][kCounters]) {
  const auto low = static_cast<std::uint32_t>(begin / kCounters * kCounters);
  const std::uint32_t upper = upper_half(noise, kind, begin);
  const int drop = 32 - noise.bits;
  const auto first = static_cast<std::uint32_t>(begin % kCounters);
  const std::uint32_t last = first + static_cast<std::uint32_t>(end - begin);
  for (std::uint32_t n = first; n < last; ++n) {
    const FourWords w = draw(noise, low + n, upper);
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
  constexpr std::int64_t kCounters = Noise::kGroups / 4, kElements = 4 * kGroup;  // elements per counter
  std::uint32_t words[4][kCounters];
  const std::int64_t first = begin / kElements, last = (end + kElements - 1) / kElements;
  draw_counters(noise, kOfGroup, first, last, words);
  for (std::int64_t n = first; n < last; ++n) {
    for (int word = 0; word < 4; ++word) noise.groups[n % kCounters * 4 + word] = words[word][n % kCounters];
  }
}

template <class Codec>
void decode_items(const std::byte* stored, const float*, std::int64_t size, float* values) {
  const auto* const items = reinterpret_cast<const typename Codec::Storage*>(stored);
  each_register<float>(size, [=](auto type, std::int64_t j)
                                 GS_ALWAYS_INLINE { store(values + j, load_as<decltype(type)>(Codec{}, items + j)); });
}

// Items whose values are no floats, or are to be doubles.
template <class Codec, class T>
void convert_items(const std::byte* stored, const float*, std::int64_t size, T* GS_RESTRICT values) {
  const auto* const GS_RESTRICT items = reinterpret_cast<const typename Codec::Storage*>(stored);
  for (std::int64_t j = 0; j < size; ++j) {
    if constexpr (Codec::kKind == CodecKind::kNative) {
      values[j] = static_cast<T>(items[j]);
    } else {
      values[j] = load_as<float>(Codec{}, items + j);
    }
  }
}

template <class Codec>
void encode_items(const float* values, std::int64_t size, const Noise* noise, std::int64_t first, std::byte* stored,
                  float*) {
  auto* const items = reinterpret_cast<typename Codec::Storage*>(stored);
  if (noise == nullptr) {
    each_register<float>(size, [=](auto type, std::int64_t j) GS_ALWAYS_INLINE {
      store_as(Codec{}, items + j, load<decltype(type)>(values + j));
    });
    return;
  }
  for (std::int64_t begin = 0; begin < size; begin += kGroup) {
    const std::uint32_t group = noise->groups[Noise::group_of(first + begin)];
    const std::int64_t count = size - begin < kGroup ? size - begin : kGroup;
    each_register<float>(count, [=](auto type, std::int64_t j) GS_ALWAYS_INLINE {
      const auto random = load<decltype(bits_of(type))>(noise->places + j) ^ group;
      store_words<Codec::kShift>(items + begin + j, Codec::encode(load<decltype(type)>(values + begin + j), random));
    });
  }
}

// Calls f(begin, count) for each block of `size` elements.
template <class F>
GS_INLINE void each_block(std::int64_t size, const F& f) {
  for (std::int64_t begin = 0; begin < size; begin += kBlock) f(begin, size - begin < kBlock ? size - begin : kBlock);
}

template <class Codec>
void decode_blocks(const std::byte* stored, const float* scales, std::int64_t size, float* values) {
  const auto* const codes = reinterpret_cast<const typename Codec::Storage*>(stored);
  each_block(size, [=](std::int64_t begin, std::int64_t count) GS_ALWAYS_INLINE {
    decode_block<Codec>(codes + begin, count, scales[begin / kBlock], values + begin);
  });
}

template <class Codec>
void encode_blocks(const float* values, std::int64_t size, const Noise* noise, std::int64_t first, std::byte* stored,
                   float* scales) {
  auto* const codes = reinterpret_cast<typename Codec::Storage*>(stored);
  each_block(size, [=](std::int64_t begin, std::int64_t count) GS_ALWAYS_INLINE {
    scales[begin / kBlock] = encode_block<Codec>(values + begin, count, largest_of(values + begin, count), noise,
                                                 first + begin, codes + begin);
  });
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
    if (prefetches) prefetch<kRun>(x + begin);
    add(begin, begin % kSumLanes, kRun);
  }
  add(begin, begin % kSumLanes, size - begin);
}

template <class T>
void average_of(T* GS_RESTRICT average, const T* GS_RESTRICT x, std::int64_t size, T keep, T take) {
  for (std::int64_t i = 0; i < size; ++i) average[i] = rules::blend(keep, average[i], take, x[i]);
}

void round_to_floats(const double* GS_RESTRICT values, std::int64_t size, const Noise*, std::int64_t, std::byte* stored,
                     float*) {
  auto* const GS_RESTRICT items = reinterpret_cast<float*>(stored);
  for (std::int64_t j = 0; j < size; ++j) items[j] = static_cast<float>(values[j]);
}

// The loops that a codec needs for a compute type.
template <class Codec>
constexpr Conversion<float> to_floats() {
  if constexpr (Codec::kKind == CodecKind::kNarrow) return {&decode_items<Codec>, &encode_items<Codec>};
  if constexpr (Codec::kKind == CodecKind::kBlocked) return {&decode_blocks<Codec>, &encode_blocks<Codec>};
  if constexpr (sizeof(typename Codec::Storage) == sizeof(double)) return {&convert_items<Codec, float>, nullptr};
  return {};
}
template <class Codec>
constexpr Conversion<double> to_doubles() {
  if constexpr (Codec::kKind == CodecKind::kNarrow) return {&convert_items<Codec, double>, nullptr};
  if constexpr (sizeof(typename Codec::Storage) == sizeof(float))
    return {&convert_items<Codec, double>, &round_to_floats};
  return {};
}

}  // namespace

#define GS_JOIN_(a, b) a##b
#define GS_JOIN(a, b) GS_JOIN_(a, b)

// cpu/isa.cpp declares this function for every row of the table.
const Conversions& GS_JOIN(conversions_, GS_ISA)() {
#define GS_TO_FLOATS(name, Codec) to_floats<codecs::Codec>(),
#define GS_TO_DOUBLES(name, Codec) to_doubles<codecs::Codec>(),
  static constexpr Conversions all{
      {GS_CODECS(GS_TO_FLOATS)}, {GS_CODECS(GS_TO_DOUBLES)}, &draw_places,       &draw_groups,
      &add_squares<float>,       &add_squares<double>,       &average_of<float>, &average_of<double>};
#undef GS_TO_FLOATS
#undef GS_TO_DOUBLES
  return all;
}

}  // namespace gradstep::cpu
