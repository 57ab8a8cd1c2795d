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

// Values as doubles.
template <int kCount>
GS_INLINE Vector<double, kCount> widened(Vector<float, kCount> x) {
  return __builtin_convertvector(x.v, typename Vector<double, kCount>::Native);
}
template <int kCount>
GS_INLINE Vector<double, kCount> widened(Vector<double, kCount> x) {
  return x;
}

template <class T>
void add_squares(const std::byte* values, std::int64_t size, double* GS_RESTRICT lanes, bool prefetches) {
  constexpr std::int64_t kRun = kPrefetchRun<T>;
  static_assert(kSumLanes % kRun == 0);
  const T* const GS_RESTRICT x = reinterpret_cast<const T*>(values);
  std::int64_t begin = 0;
  if constexpr (kRegister == 64) {  // registers have room for all lanes
    constexpr int kHeld = kSumLanes / Doubles::kLanes;
    Doubles held[kHeld];
    GS_UNROLL(16)
    for (int k = 0; k < kHeld; ++k) held[k] = load<Doubles>(lanes + k * Doubles::kLanes);
    GS_UNROLL(1)
    for (; begin + kSumLanes <= size; begin += kSumLanes) {
      if (prefetches) prefetch<kSumLanes>(x + begin);
      GS_UNROLL(16)
      for (int k = 0; k < kHeld; ++k) {
        const Doubles value = widened(load<Vector<T, Doubles::kLanes>>(x + begin + k * Doubles::kLanes));
        held[k] = held[k] + value * value;
      }
    }
    GS_UNROLL(16)
    for (int k = 0; k < kHeld; ++k) store(lanes + k * Doubles::kLanes, held[k]);
  }
  const auto add = [=](std::int64_t first, std::int64_t lane, std::int64_t count) GS_ALWAYS_INLINE {
    for (std::int64_t i = 0; i < count; ++i) {
      const double value = x[first + i];
      lanes[lane + i] = lanes[lane + i] + value * value;
    }
  };
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

// The numbers 0 ... n - 1.
template <int...>
struct Numbers {};
template <int kCount, int... kTail>
struct NumbersTo : NumbersTo<kCount - 1, kCount - 1, kTail...> {};
template <int... kAll>
struct NumbersTo<0, kAll...> {
  using Type = Numbers<kAll...>;
};

// The items of two registers alternately: of their lower halves, or of their upper halves.
template <int kFirst, class Native, int... kIndex>
GS_INLINE Native interleave(Native a, Native b, Numbers<kIndex...>) {
  constexpr int kItems = sizeof...(kIndex);
  return __builtin_shufflevector(a, b, (kFirst + kIndex / 2 + kIndex % 2 * kItems)...);
}

// Transposes a square of as many columns as a register has items. Each step interleaves register i with register
// i + n / 2; after log2(n) steps register j holds item j of every column.
template <class Item, int kBytes>
GS_INLINE void transpose_square(const std::byte* const* columns, std::int64_t offset, std::byte* to,
                                std::int64_t pitch) {
  constexpr int kItems = kBytes / static_cast<int>(sizeof(Item));
  using Native = typename NativeOf<Item, kBytes>::Type;
  constexpr typename NumbersTo<kItems>::Type kWhole;
  Native v[kItems], next[kItems];
  GS_UNROLL(32)
  for (int i = 0; i < kItems; ++i) __builtin_memcpy(&v[i], columns[i] + offset, kBytes);
  GS_UNROLL(8)
  for (int step = 1; step < kItems; step *= 2) {
    GS_UNROLL(32)
    for (int i = 0; i < kItems / 2; ++i) {
      next[2 * i] = interleave<0>(v[i], v[i + kItems / 2], kWhole);
      next[2 * i + 1] = interleave<kItems / 2>(v[i], v[i + kItems / 2], kWhole);
    }
    GS_UNROLL(32)
    for (int i = 0; i < kItems; ++i) v[i] = next[i];
  }
  GS_UNROLL(32)
  for (int i = 0; i < kItems; ++i) __builtin_memcpy(to + i * pitch, &v[i], kBytes);
}

// In squares, the last of which may overlap the ones before.
template <class Item, int kBytes>
GS_INLINE void gather_squares(const std::byte* const* columns, std::int64_t width, std::int64_t height,
                              std::int64_t step, std::byte* to, std::int64_t pitch) {
  constexpr std::int64_t kSize = sizeof(Item), kItems = kBytes / kSize;
  alignas(64) std::byte packed[kBlockBytes];
  for (std::int64_t next = 0; next < width; next += kItems) {
    const std::int64_t i = next + kItems <= width ? next : width - kItems;
    for (std::int64_t k = i + kPrefetchColumns; k < i + kPrefetchColumns + kItems && k < width; ++k) {
      // Into L2, because columns that are a power of two apart evict each other from L1.
      for (std::int64_t byte = 0; byte < kPrefetchedBytes && byte < height * step + kCacheLine; byte += kCacheLine) {
        __builtin_prefetch(columns[k] + byte, 0, 2);
      }
    }
    const std::byte* const* from = columns + i;
    const std::byte* without_gaps[kItems];
    if (step != kSize) {
      for (std::int64_t k = 0; k < kItems; ++k) {
        std::byte* const items = packed + k * height * kSize;
        for (std::int64_t j = 0; j < height; ++j) __builtin_memcpy(items + j * kSize, from[k] + j * step, kSize);
        without_gaps[k] = items;
      }
      from = without_gaps;
    }
    for (std::int64_t below = 0; below < height; below += kItems) {
      const std::int64_t j = below + kItems <= height ? below : height - kItems;
      transpose_square<Item, kBytes>(from, j * kSize, to + j * pitch + i * kSize, pitch);
    }
  }
}

template <class Item>
void gather_columns(const std::byte* const* columns, std::int64_t width, std::int64_t height, std::int64_t step,
                    std::byte* to, std::int64_t pitch) {
  constexpr std::int64_t kSize = sizeof(Item);
  // A square of 16-bit items in wider registers would need more registers than there are with AVX2.
  constexpr int kWide = kSize == 2 ? 16 : kRegister, kShort = 16;
  const std::int64_t side = width < height ? width : height;
  if (side >= kWide / kSize) return gather_squares<Item, kWide>(columns, width, height, step, to, pitch);
  if (side >= kShort / kSize) return gather_squares<Item, kShort>(columns, width, height, step, to, pitch);
  for (std::int64_t i = 0; i < width; ++i) {
    for (std::int64_t j = 0; j < height; ++j) {
      __builtin_memcpy(to + j * pitch + i * kSize, columns[i] + j * step, kSize);
    }
  }
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
      {GS_CODECS(GS_TO_FLOATS)},
      {GS_CODECS(GS_TO_DOUBLES)},
      &draw_places,
      &draw_groups,
      &add_squares<float>,
      &add_squares<double>,
      &average_of<float>,
      &average_of<double>,
      {&gather_columns<std::uint16_t>, &gather_columns<std::uint32_t>, &gather_columns<std::uint64_t>}};
#undef GS_TO_FLOATS
#undef GS_TO_DOUBLES
  return all;
}

}  // namespace gradstep::cpu
