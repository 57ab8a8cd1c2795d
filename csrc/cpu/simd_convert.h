#pragma once

#include "codecs/all.h"
#include "cpu/simd.h"

// Loads and stores of 8-bit and 16-bit items as registers of 32-bit words, and the hardware conversions of codecs.
namespace gradstep::cpu {
namespace {

#if defined(__AVX512F__)

constexpr __mmask16 kAll = 0xffff;  // without a mask, GCC 12 warns about its own header

GS_INLINE Words widen(const std::uint16_t* from) {
  return Words::of(_mm512_maskz_cvtepu16_epi32(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}
GS_INLINE Words widen(const std::uint8_t* from) {
  return Words::of(_mm512_maskz_cvtepu8_epi32(kAll, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
GS_INLINE Words widen(const std::int8_t* from) {
  return Words::of(_mm512_maskz_cvtepi8_epi32(kAll, _mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
GS_INLINE void narrow(Words words, std::uint16_t* to) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_maskz_cvtepi32_epi16(kAll, words.as<__m512i>()));
}

// One permutation each, because shifts and conversions compete with division for the same execution units.
alignas(64) constexpr std::uint16_t kToUpper[32] = {0, 0, 0, 1, 0, 2,  0, 3,  0, 4,  0, 5,  0, 6,  0, 7,
                                                    0, 8, 0, 9, 0, 10, 0, 11, 0, 12, 0, 13, 0, 14, 0, 15};
alignas(64) constexpr std::uint16_t kFromUpper[32] = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
GS_INLINE Words widen_to_upper(const std::uint16_t* from) {
  const __m512i twice = _mm512_maskz_broadcast_i64x4(0xff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  return Words::of(_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, _mm512_load_si512(kToUpper), twice));
}
GS_INLINE void narrow_from_upper(Words words, std::uint16_t* to) {
  const __m512i items = _mm512_maskz_permutexvar_epi16(0xffff, _mm512_load_si512(kFromUpper), words.as<__m512i>());
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), __builtin_shufflevector(items, items, 0, 1, 2, 3));
}
GS_INLINE void narrow(Words words, std::uint8_t* to) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_maskz_cvtepi32_epi8(kAll, words.as<__m512i>()));
}

#elif defined(__AVX2__)

GS_INLINE __m128i load_low(const void* from) { return _mm_loadl_epi64(static_cast<const __m128i*>(from)); }

GS_INLINE Words widen(const std::uint16_t* from) {
  return Words::of(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
GS_INLINE Words widen(const std::uint8_t* from) { return Words::of(_mm256_cvtepu8_epi32(load_low(from))); }
GS_INLINE Words widen(const std::int8_t* from) { return Words::of(_mm256_cvtepi8_epi32(load_low(from))); }

// Requires words below 2^16.
GS_INLINE void narrow(Words words, std::uint16_t* to) {
  const auto all = words.as<__m256i>();
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
}
GS_INLINE Words widen_to_upper(const std::uint16_t* from) { return widen(from) << 16; }
GS_INLINE void narrow_from_upper(Words words, std::uint16_t* to) {
  const __m256i order = _mm256_setr_epi8(2, 3, 6, 7, 10, 11, 14, 15, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                         2, 3, 6, 7, 10, 11, 14, 15, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i halves = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(words.as<__m256i>(), order), 0b1000);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(halves));
}
GS_INLINE void narrow(Words words, std::uint8_t* to) {
  const __m256i low = _mm256_and_si256(words.as<__m256i>(), _mm256_set1_epi32(0xff));
  const __m128i pairs = _mm_packus_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(pairs, pairs));
}

#elif defined(__SSE2__)

GS_INLINE __m128i load_four(const void* bytes) {
  int all;
  __builtin_memcpy(&all, bytes, sizeof all);
  return _mm_cvtsi32_si128(all);
}

GS_INLINE Words widen(const std::uint16_t* from) {
  return Words::of(_mm_unpacklo_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)), _mm_setzero_si128()));
}
GS_INLINE Words widen(const std::uint8_t* from) {
  const __m128i zero = _mm_setzero_si128();
  return Words::of(_mm_unpacklo_epi16(_mm_unpacklo_epi8(load_four(from), zero), zero));
}
GS_INLINE Words widen(const std::int8_t* from) {
  const __m128i pairs = _mm_unpacklo_epi8(load_four(from), load_four(from));
  return Words::of(_mm_srai_epi32(_mm_unpacklo_epi16(pairs, pairs), 24));
}
GS_INLINE void narrow(Words words, std::uint16_t* to) {
  const __m128i extended = _mm_srai_epi32(_mm_slli_epi32(words.as<__m128i>(), 16), 16);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi32(extended, extended));
}
GS_INLINE Words widen_to_upper(const std::uint16_t* from) {
  return Words::of(_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}
GS_INLINE void narrow_from_upper(Words words, std::uint16_t* to) {
  const __m128i extended = _mm_srai_epi32(words.as<__m128i>(), 16);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi32(extended, extended));
}
GS_INLINE void narrow(Words words, std::uint8_t* to) {
  const __m128i low = _mm_and_si128(words.as<__m128i>(), _mm_set1_epi32(0xff));
  const __m128i pairs = _mm_packs_epi32(low, low);
  const int all = _mm_cvtsi128_si32(_mm_packus_epi16(pairs, pairs));
  __builtin_memcpy(to, &all, sizeof all);
}

#else

template <class Storage>
using Items = typename NativeOf<Storage, Words::kLanes* static_cast<int>(sizeof(Storage))>::Type;

template <class Storage>
GS_INLINE Words widen(const Storage* from) {
  Items<Storage> items;
  __builtin_memcpy(&items, from, sizeof items);
  return __builtin_convertvector(items, Words::Native);
}
template <class Storage>
GS_INLINE void narrow(Words words, Storage* to) {
  const auto items = __builtin_convertvector(words.v, Items<Storage>);
  __builtin_memcpy(to, &items, sizeof items);
}
GS_INLINE Words widen_to_upper(const std::uint16_t* from) { return widen(from) << 16; }
GS_INLINE void narrow_from_upper(Words words, std::uint16_t* to) { narrow(words >> 16, to); }

#endif

// Loads items as 32-bit words, zero-extended or sign-extended according to Storage, and shifts them left by kShift. V
// is a scalar or a register and determines the number of items.
template <class V, int kShift, class Storage>
GS_INLINE auto load_words(const Storage* from) {
  if constexpr (sizeof(V) == sizeof(float)) {
    return static_cast<std::uint32_t>(*from) << kShift;
  } else if constexpr (kShift == 16) {
    return widen_to_upper(from);
  } else {
    static_assert(kShift == 0);
    return widen(from);
  }
}

// Stores words as items: the inverse of load_words().
template <int kShift, class Storage>
GS_INLINE void store_words(Storage* to, std::uint32_t word) {
  *to = static_cast<Storage>(word >> kShift);
}
template <int kShift, class Storage>
GS_INLINE void store_words(Storage* to, Words words) {
  if constexpr (kShift == 16) {
    narrow_from_upper(words, to);
  } else if constexpr (sizeof(Storage) == 1) {
    narrow(words, reinterpret_cast<std::uint8_t*>(to));
  } else {
    static_assert(kShift == 0);
    narrow(words, to);
  }
}

// Loads and stores a value, or a register of values, through a narrow codec. Stored values are rounded to nearest.
template <class V, class Codec>
GS_INLINE V load_as(Codec, const typename Codec::Storage* from) {
  return Codec::decode(load_words<V, Codec::kShift>(from));
}
template <class V, class Codec>
GS_INLINE void store_as(Codec, typename Codec::Storage* to, V x) {
  store_words<Codec::kShift>(to, Codec::encode(x));
}

// Hardware conversions of float16, which give the same bits as the codec.
#if defined(__AVX512F__)
template <>
GS_INLINE Floats load_as(codecs::Float16, const std::uint16_t* from) {
  return Floats::of(_mm512_maskz_cvtph_ps(kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}
template <>
GS_INLINE void store_as(codecs::Float16, std::uint16_t* to, Floats x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_maskz_cvtps_ph(kAll, x.v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__AVX2__)
template <>
GS_INLINE Floats load_as(codecs::Float16, const std::uint16_t* from) {
  return Floats::of(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
template <>
GS_INLINE void store_as(codecs::Float16, std::uint16_t* to, Floats x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
#elif defined(__ARM_NEON)
template <>
GS_INLINE Floats load_as(codecs::Float16, const std::uint16_t* from) {
  return Floats::of(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))));
}
template <>
GS_INLINE void store_as(codecs::Float16, std::uint16_t* to, Floats x) {
  vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32(x.v)));
}
#endif

}  // namespace
}  // namespace gradstep::cpu
