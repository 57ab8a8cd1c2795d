#pragma once

#include <cuda_fp16.h>

#include "cuda/lane.h"

// Conversions between a stream's stored items and a lane's elements, for streams that are not native.
namespace gradstep::cuda {

// A block of one tensor, seen from one lane of its warp.
struct Block {
  std::int64_t begin;
  int count;  // elements, kBlock at most
  int lane;
  std::byte* tile;  // the warp's scratch memory, large enough for a block of any type

  GS_DEVICE Block(const Chunk& chunk, std::int64_t first, int the_lane, std::byte* the_tile)
      : begin(first),
        count(static_cast<int>(chunk.end - first < kBlock ? chunk.end - first : kBlock)),
        lane(the_lane),
        tile(the_tile) {}
};

// What a stream of an update that is computed in floats can be stored as: what the codecs say, and doubles where it is
// read alone.
template <class ElementUpdate>
constexpr bool may_be(int s, DType dtype) {
  unsigned roles = kStreams[s].roles;
  if (is_state(s)) roles = ElementUpdate::non_negative(s - kFirstState) ? kAsNonNegativeState : kAsSignedState;
  return (compute_of(dtype) == Compute::kFloat || !kStreams[s].written) && gradstep::may_be(dtype, roles);
}

template <class ElementUpdate>
constexpr bool may_have_scales(int s) {
  return may_be<ElementUpdate>(s, DType::kQ8Signed) || may_be<ElementUpdate>(s, DType::kQ8Unsigned);
}

// Copies one item of `size` bytes, or writes zero.
GS_DEVICE void move_item(std::byte* to, const std::byte* from, int size, bool zero) {
  const auto move = [=](auto item) {
    using Item = decltype(item);
    *reinterpret_cast<Item*>(to) = zero ? Item{0} : *reinterpret_cast<const Item*>(from);
  };
  if (size == 8) {
    move(std::uint64_t{});
  } else if (size == 4) {
    move(std::uint32_t{});
  } else if (size == 2) {
    move(std::uint16_t{});
  } else {
    move(std::uint8_t{});
  }
}

// Gathers a stream's elements into the tile, with zeros beyond the last one; or scatters them from it.
template <bool kGather>
GS_DEVICE void move(const TensorDesc& desc, int s, std::byte* data, const Block& block) {
  const int size = desc.item_sizes[s];
  __syncwarp();
#pragma unroll 1
  for (int i = block.lane; i < (kGather ? static_cast<int>(kBlock) : block.count); i += kWarp) {
    std::byte* const in_tile = block.tile + i * size;
    const bool beyond = i >= block.count;
    std::byte* const in_place = beyond ? data : data + offset(desc, s, block.begin + i);
    move_item(kGather ? in_tile : in_place, kGather ? in_place : in_tile, size, beyond);
  }
  __syncwarp();
}

// Gathers a stream's doubles into the tile, rounded to floats, and zeros behind the last.
GS_DEVICE void gather_rounded(const TensorDesc& desc, int s, const std::byte* data, const Block& block) {
  auto* const tile = reinterpret_cast<float*>(block.tile);
  __syncwarp();
#pragma unroll 1
  for (int i = block.lane; i < static_cast<int>(kBlock); i += kWarp) {
    const bool beyond = i >= block.count;
    const std::byte* const item = beyond ? data : data + offset(desc, s, block.begin + i);
    tile[i] = beyond ? 0.0f : static_cast<float>(*reinterpret_cast<const double*>(item));
  }
  __syncwarp();
}

// Whether a block's items lie in one piece, to be moved in full width; else they go by way of the tile.
GS_DEVICE bool in_one_piece(const TensorDesc& desc, int s, const std::byte* begin, const Block& block) {
  const auto width = static_cast<std::uint32_t>(LaneSlice<float>::kVector * desc.item_sizes[s]);  // a power of two
  const auto low = static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(begin));
  return block.count == kBlock && !desc.strided[s] && (low & (width - 1)) == 0;
}

// Calls f(Raw) for the size of a stream's items.
template <class F>
GS_DEVICE void visit_raw(int size, const F& f) {
  if (size == 4) {
    f(Raw<float, 4>{});
  } else if (size == 2) {
    f(Raw<float, 2>{});
  } else {
    f(Raw<float, 1>{});
  }
}

// Asks for a stream's items as they are stored, but for doubles, which become floats. It waits for no others, so that
// those of all streams are under way together.
GS_DEVICE void fetch(const TensorDesc& desc, int s, std::byte* data, const Block& block, std::uint32_t (&raw)[kItems]) {
  const int size = desc.item_sizes[s];
  const std::byte* const begin = global(data + block.begin * size);
  if (s == kGradient && size == sizeof(double)) {
    gather_rounded(desc, s, data, block);
    Raw<float, sizeof(float)>::load(block.tile, block.lane, raw);
  } else if (in_one_piece(desc, s, begin, block)) {
    visit_raw(size, [&](auto width) { width.load(begin, block.lane, raw); });
  } else {
    move<true>(desc, s, data, block);
    visit_raw(size, [&](auto width) { width.load(block.tile, block.lane, raw); });
  }
}

// Stores a stream's items where fetch() loaded them.
GS_DEVICE void put(const TensorDesc& desc, int s, std::byte* data, const Block& block,
                   const std::uint32_t (&raw)[kItems]) {
  const int size = desc.item_sizes[s];
  std::byte* const begin = global(data + block.begin * size);
  if (in_one_piece(desc, s, begin, block)) {
    visit_raw(size, [&](auto width) { width.store(begin, block.lane, raw); });
  } else {
    __syncwarp();  // another lane may still read the tile
    visit_raw(size, [&](auto width) { width.store(block.tile, block.lane, raw); });
    move<false>(desc, s, data, block);
  }
}

// A lane's random bits for a stream of a block, from the words of the places and of the block's groups in shared
// memory, already shifted to the number of bits that the codec needs.
class Noise {
 public:
  GS_DEVICE Noise(const std::uint32_t* places, const std::uint32_t* groups, int lane)
      : places_(places + LaneSlice<float>::place(lane, 0) % static_cast<int>(kGroup)) {
    static_assert(kWarp * LaneSlice<float>::kVector == 2 * kGroup, "a lane's next vector is two groups further on");
    const bool upper = lane >= kWarp / 2;
    groups_[0] = groups[upper ? 1 : 0];
    groups_[1] = groups[upper ? 3 : 2];
  }

  GS_DEVICE std::uint32_t bits(int item) const {
    return places_[item % LaneSlice<float>::kVector] ^ groups_[item / LaneSlice<float>::kVector];
  }

 private:
  const std::uint32_t* places_;
  std::uint32_t groups_[LaneSlice<float>::kVectors];
};

// Draws the random bits of a stream's elements one by one, in the warp's scratch memory: a word for each of the lane's
// items, in their order in the block. `places` are the words of the places, shifted.
GS_DEVICE const std::uint32_t* draw_each(const TensorDesc& desc, const NoiseKey& key, const std::uint32_t* places,
                                         int drop, const Block& block) {
  auto* const words = reinterpret_cast<std::uint32_t*>(block.tile);
  __syncwarp();  // another lane may still read them
#pragma unroll 1
  for (int i = block.lane; i < block.count; i += kWarp) {
    const std::int64_t place = place_of(desc, block.begin + i), of_four = place / kBlock;
    const FourWords g = draw(key, static_cast<std::uint32_t>(of_four), upper_half(key, kOfGroup, of_four));
    const auto group = static_cast<int>(place / kGroup % 4);
    const std::uint32_t word = group == 0 ? g.w0 : group == 1 ? g.w1 : group == 2 ? g.w2 : g.w3;
    words[i] = places[place % kGroup] ^ word >> drop;
  }
  __syncwarp();
  return words;
}

// Whether a stream is rounded stochastically, and its random bits: those of `each`, where it is not null.
struct StochasticRounding {
  bool asked;
  Noise noise;
  const std::uint32_t* each;
};

// Streams stored as float.
struct Native {
  GS_DEVICE static void decode(const std::uint32_t (&raw)[kItems], float, float (&x)[kItems]) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) x[i] = float_of(raw[i]);
  }
  GS_DEVICE static void encode(const float (&x)[kItems], const Block&, const StochasticRounding&, float*,
                               std::uint32_t (&raw)[kItems]) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) raw[i] = bits_of(x[i]);
  }
};

#if defined(__CUDA_ARCH__)
// Hardware conversions, which equal the codecs' except for the payload of a NaN.
GS_DEVICE float widened(codecs::Float16, std::uint32_t code) {
  return __half2float(__ushort_as_half(static_cast<std::uint16_t>(code)));
}
GS_DEVICE std::uint32_t narrowed(codecs::Float16, float x) { return __half_as_ushort(__float2half_rn(x)); }
#endif
template <class Codec>
GS_DEVICE float widened(Codec, std::uint32_t code) {
  return Codec::decode(code << Codec::kShift);
}
template <class Codec>
GS_DEVICE std::uint32_t narrowed(Codec, float x) {
  return Codec::encode(x) >> Codec::kShift;
}

// Reads a gradient's item as a value of T, where its type is the codec's.
template <class T, class Codec>
GS_DEVICE void read_if(DType dtype, Codec, const std::byte* item, T& value) {
  if constexpr ((Codec::kRoles & kAsGradient) != 0) {
    if (dtype != kDTypeOf<Codec>) return;
    const auto stored = *reinterpret_cast<const typename Codec::Storage*>(item);
    if constexpr (Codec::kKind == CodecKind::kNative) {
      value = static_cast<T>(stored);
    } else {
      value = static_cast<T>(widened(Codec{}, stored));
    }
  }
}

template <class T>
GS_DEVICE T gradient_at(DType dtype, const std::byte* item) {
  T value = 0;
#define GS_READ(name, Codec) read_if(dtype, codecs::Codec{}, item, value);
  GS_CODECS(GS_READ)
#undef GS_READ
  return value;
}

// One value an item.
template <class Codec>
struct Narrow {
  using Storage = typename Codec::Storage;
  using Width = Raw<float, sizeof(Storage)>;

  GS_DEVICE static void decode(const std::uint32_t (&raw)[kItems], float, float (&x)[kItems]) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) x[i] = widened(Codec{}, static_cast<Storage>(Width::get(raw, i)));
  }
  GS_DEVICE static void encode(const float (&x)[kItems], const Block& block, const StochasticRounding& rounding, float*,
                               std::uint32_t (&raw)[kItems]) {
    if (rounding.asked && rounding.each != nullptr) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int place = LaneSlice<float>::place(block.lane, i);
        const std::uint32_t bits = place < block.count ? rounding.each[place] : 0;
        Width::put(raw, i, Codec::encode(x[i], bits) >> Codec::kShift);
      }
    } else if (rounding.asked) {
#pragma unroll
      for (int i = 0; i < kItems; ++i) Width::put(raw, i, Codec::encode(x[i], rounding.noise.bits(i)) >> Codec::kShift);
    } else {
#pragma unroll
      for (int i = 0; i < kItems; ++i) Width::put(raw, i, narrowed(Codec{}, x[i]));
    }
  }
};

// Whether any byte of a word equals `byte`.
GS_DEVICE bool has_byte(std::uint32_t word, int byte) {
  const std::uint32_t x = word ^ (static_cast<std::uint8_t>(byte) * 0x01010101u);
  return ((x - 0x01010101u) & ~x & 0x80808080u) != 0;
}

// Codes with a scale, which `scale` points to. They are always rounded stochastically.
template <class Codec>
struct Scaled {
  using Width = Raw<float, 1>;

  GS_DEVICE static void decode(const std::uint32_t (&raw)[kItems], float scale, float (&x)[kItems]) {
    bool special = false;
#pragma unroll
    for (int word = 0; word < kItems / Width::kPerWord; ++word) {
      special = special || has_byte(raw[word], Codec::kZero) || has_byte(raw[word], Codec::kNotFinite);
    }
    special ? decode_as<true>(raw, scale, x) : decode_as<false>(raw, scale, x);
  }

  GS_DEVICE static void encode(const float (&x)[kItems], const Block& block, const StochasticRounding& rounding,
                               float* scale, std::uint32_t (&raw)[kItems]) {
    std::uint32_t most = largest<false>(x);
    const bool beyond = Codec::is_beyond(most);
    if (most >= kInfinity) most = largest<true>(x);
    const float now = Codec::scale(most);
    if (block.lane == 0) *scale = now;
    beyond ? encode_as<true>(x, now, rounding.noise, raw) : encode_as<false>(x, now, rounding.noise, raw);
  }

 private:
  template <bool kSpecial>
  GS_DEVICE static void decode_as(const std::uint32_t (&raw)[kItems], float scale, float (&x)[kItems]) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const auto code = static_cast<typename Codec::Storage>(Width::get(raw, i));
      x[i] = Codec::template decode<kSpecial>(static_cast<std::int32_t>(code), scale);
    }
  }

  template <bool kBeyond>
  GS_DEVICE static void encode_as(const float (&x)[kItems], float scale, const Noise& noise,
                                  std::uint32_t (&raw)[kItems]) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      Width::put(raw, i, Codec::template encode<kBeyond>(x[i], scale, noise.bits(i)) & 0xff);
    }
  }

  // The bits of the largest magnitude of a block, or of the largest finite one. Values beyond the last element are
  // zero.
  template <bool kFinite>
  GS_DEVICE static std::uint32_t largest(const float (&x)[kItems]) {
    std::uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const std::uint32_t u = magnitude_of(x[i]);
      most = u > most && !(kFinite && u >= kInfinity) ? u : most;
    }
    return warp_max(most);
  }
};

template <class Codec>
GS_DEVICE auto conversion(Codec) {
  if constexpr (Codec::kKind == CodecKind::kNative) {
    return Native{};
  } else if constexpr (Codec::kKind == CodecKind::kNarrow) {
    return Narrow<Codec>{};
  } else {
    return Scaled<Codec>{};
  }
}

// Calls f(conversion) for a stream's storage type.
template <class ElementUpdate, int s, class F>
GS_DEVICE void visit_stored(DType dtype, const F& f) {
#define GS_VISIT(name, Codec)                                 \
  if constexpr (may_be<ElementUpdate>(s, DType::name)) {      \
    if (dtype == DType::name) f(conversion(codecs::Codec{})); \
  }
  GS_CODECS(GS_VISIT)
#undef GS_VISIT
}

}  // namespace gradstep::cuda
