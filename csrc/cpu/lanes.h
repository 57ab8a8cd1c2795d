#pragma once

#include <cstdint>

#include "base/macros.h"
#include "codecs/float16.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

// What an instruction set has for changing the width of lanes, where compilers do not find it: each function takes
// kLanes of them. For one file per instruction set (cpu/conversions.cpp), and so in an anonymous namespace.
namespace gradstep::cpu {
namespace {

#if defined(__AVX512F__)

constexpr int kLanes = 16;
constexpr __mmask16 kAll = 0xffff;  // without it, GCC 12 warns of its own header

GS_INLINE void widen(const std::int8_t* from, std::int32_t* to) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  _mm512_storeu_si512(to, _mm512_maskz_cvtepi8_epi32(kAll, bytes));
}
GS_INLINE void widen(const std::uint8_t* from, std::int32_t* to) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  _mm512_storeu_si512(to, _mm512_maskz_cvtepu8_epi32(kAll, bytes));
}
GS_INLINE void from_halves(const std::uint16_t* from, float* to) {
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  _mm512_storeu_ps(to, _mm512_maskz_cvtph_ps(kAll, halves));
}
GS_INLINE void to_halves(const float* from, std::uint16_t* to) {
  const __m256i halves = _mm512_maskz_cvtps_ph(kAll, _mm512_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves);
}

#elif defined(__AVX2__)

constexpr int kLanes = 8;

GS_INLINE void widen(const std::int8_t* from, std::int32_t* to) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_cvtepi8_epi32(bytes));
}
GS_INLINE void widen(const std::uint8_t* from, std::int32_t* to) {
  const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_cvtepu8_epi32(bytes));
}
GS_INLINE void from_halves(const std::uint16_t* from, float* to) {
  _mm256_storeu_ps(to, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
GS_INLINE void to_halves(const float* from, std::uint16_t* to) {
  const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(from), _MM_FROUND_TO_NEAREST_INT);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), halves);
}

#elif defined(__ARM_NEON)

constexpr int kLanes = 4;

GS_INLINE void from_halves(const std::uint16_t* from, float* to) {
  vst1q_f32(to, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))));
}
GS_INLINE void to_halves(const float* from, std::uint16_t* to) {
  vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(from))));
}

#else

constexpr int kLanes = 1;

#endif

// Decodes and encodes (to nearest) what whole registers hold, where there are instructions for a codec; says how many.
template <class Codec>
GS_INLINE std::int64_t decode_registers(Codec, const typename Codec::Storage*, std::int64_t, float*) {
  return 0;
}
template <class Codec>
GS_INLINE std::int64_t encode_registers(Codec, const float*, std::int64_t, typename Codec::Storage*) {
  return 0;
}
#if defined(__AVX2__) || defined(__ARM_NEON)
GS_INLINE std::int64_t decode_registers(codecs::Float16, const std::uint16_t* codes, std::int64_t size, float* values) {
  std::int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) from_halves(codes + i, values + i);
  return i;
}
GS_INLINE std::int64_t encode_registers(codecs::Float16, const float* values, std::int64_t size, std::uint16_t* codes) {
  std::int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) to_halves(values + i, codes + i);
  return i;
}
#endif

// Bytes as integers of 32 bits.
template <class Number>
GS_INLINE void widen_all(const std::uint8_t* GS_RESTRICT codes, std::int64_t size, std::int32_t* GS_RESTRICT wide) {
  std::int64_t i = 0;
#if defined(__AVX2__)
  for (; i + kLanes <= size; i += kLanes) widen(reinterpret_cast<const Number*>(codes + i), wide + i);
#endif
  for (; i < size; ++i) wide[i] = static_cast<Number>(codes[i]);
}

}  // namespace
}  // namespace gradstep::cpu
