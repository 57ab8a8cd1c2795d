#pragma once

#include <cstddef>
#include <cstdint>

#include "base/bits.h"
#include "base/macros.h"
#include "base/subnormals.h"
#include "rules/moments.h"

#if defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

// Registers of numbers, with the operations that rules and codecs use. Most are GCC's and Clang's vector operations;
// intrinsics are used where the compilers have none or generate slower code. Included by files compiled once per
// instruction set, hence the anonymous namespace.
namespace gradstep::cpu {
namespace {

// The scalar functions, which are overloaded for registers below.
using gradstep::absolute;
using gradstep::as_signed;
using gradstep::as_unsigned;
using gradstep::bits_of;
using gradstep::float_of;
using gradstep::increment_if;
using gradstep::larger_of;
using gradstep::magnitude;
using gradstep::select;
using gradstep::smaller_of;
using gradstep::truncated;

#if defined(__AVX512F__)
constexpr int kRegister = 64;  // bytes
#elif defined(__AVX2__)
constexpr int kRegister = 32;
#else
constexpr int kRegister = 16;
#endif

// The signed integer of this many bytes: the element type of a comparison's result.
template <int kBytes>
struct IntegerOf;
template <>
struct IntegerOf<1> {
  using Type = std::int8_t;
};
template <>
struct IntegerOf<4> {
  using Type = std::int32_t;
};
template <>
struct IntegerOf<8> {
  using Type = std::int64_t;
};

// The compiler's vector type of this many bytes.
template <class T, int kBytes>
struct NativeOf {
  typedef T Type __attribute__((vector_size(kBytes)));
};

template <class T, int kCount>
struct Vector {
  static constexpr int kBytes = static_cast<int>(sizeof(T)) * kCount;
  using Native = typename NativeOf<T, kBytes>::Type;
  using Mask = Vector<typename IntegerOf<sizeof(T)>::Type, kCount>;
  static constexpr int kLanes = kCount;

  Native v;

  Vector() = default;
  GS_INLINE Vector(Native native) : v(native) {}
  GS_INLINE Vector(T x) : v(x - Native{}) {}  // broadcasts x
  // of() and as() reinterpret the bits of another vector type.
  template <class Other>
  GS_INLINE static Vector of(Other bits) {
    return reinterpret_cast<Native>(bits);
  }

  template <class Other>
  GS_INLINE Other as() const {
    return reinterpret_cast<Other>(v);
  }

  GS_INLINE friend Vector operator+(Vector a, Vector b) { return a.v + b.v; }
  GS_INLINE friend Vector operator-(Vector a, Vector b) { return a.v - b.v; }
  GS_INLINE friend Vector operator*(Vector a, Vector b) { return a.v * b.v; }
  GS_INLINE friend Vector operator/(Vector a, Vector b) { return a.v / b.v; }
  GS_INLINE friend Vector operator-(Vector a) { return -a.v; }
  GS_INLINE friend Vector operator&(Vector a, Vector b) { return a.v & b.v; }
  GS_INLINE friend Vector operator|(Vector a, Vector b) { return a.v | b.v; }
  GS_INLINE friend Vector operator^(Vector a, Vector b) { return a.v ^ b.v; }
  GS_INLINE friend Vector operator<<(Vector a, int bits) { return a.v << bits; }
  GS_INLINE friend Vector operator>>(Vector a, int bits) { return a.v >> bits; }

  GS_INLINE friend Mask operator<(Vector a, Vector b) { return Mask(a.v < b.v); }
  GS_INLINE friend Mask operator>(Vector a, Vector b) { return Mask(a.v > b.v); }
  GS_INLINE friend Mask operator>=(Vector a, Vector b) { return Mask(a.v >= b.v); }
  GS_INLINE friend Mask operator==(Vector a, Vector b) { return Mask(a.v == b.v); }
  GS_INLINE friend Mask operator!=(Vector a, Vector b) { return Mask(a.v != b.v); }

  GS_INLINE friend Vector select(Mask condition, Vector yes, Vector no) { return condition.v ? yes.v : no.v; }
};

template <class T>
using Full = Vector<T, kRegister / static_cast<int>(sizeof(T))>;

// A register of 16 bytes, for the up to 15 elements that fill no AVX-512 register. With AVX2, whose registers leave 7
// at most, it took 4 % more instructions.
template <class T>
using Short = Vector<T, 16 / static_cast<int>(sizeof(T))>;
constexpr bool kHasShort = kRegister == 64;

using Floats = Full<float>;
using Doubles = Full<double>;
using Words = Full<std::uint32_t>;
using Integers = Full<std::int32_t>;

GS_INLINE Words bits_of(Floats x) { return Words::of(x.v); }
GS_INLINE Floats float_of(Words bits) { return Floats::of(bits.v); }
GS_INLINE Integers as_signed(Words bits) { return Integers::of(bits.v); }
GS_INLINE Words as_unsigned(Integers numbers) { return Words::of(numbers.v); }
GS_INLINE Integers truncated(Floats x) { return __builtin_convertvector(x.v, Integers::Native); }

// Compilers translate the generic form into a comparison and a selection.
#if defined(__AVX512F__)
GS_INLINE Integers larger_of(Integers a, Integers b) {
  return Integers::of(_mm512_maskz_max_epi32(0xffff, a.as<__m512i>(), b.as<__m512i>()));
}
GS_INLINE Integers smaller_of(Integers a, Integers b) {
  return Integers::of(_mm512_maskz_min_epi32(0xffff, a.as<__m512i>(), b.as<__m512i>()));
}
GS_INLINE Integers absolute(Integers x) { return Integers::of(_mm512_maskz_abs_epi32(0xffff, x.as<__m512i>())); }
GS_INLINE Words increment_if(Integers condition, Words x) { return select(condition, x + 1, x); }
#elif defined(__AVX2__)
GS_INLINE Integers larger_of(Integers a, Integers b) {
  return Integers::of(_mm256_max_epi32(a.as<__m256i>(), b.as<__m256i>()));
}
GS_INLINE Integers smaller_of(Integers a, Integers b) {
  return Integers::of(_mm256_min_epi32(a.as<__m256i>(), b.as<__m256i>()));
}
GS_INLINE Integers absolute(Integers x) { return Integers::of(_mm256_abs_epi32(x.as<__m256i>())); }
GS_INLINE Words increment_if(Integers condition, Words x) { return x - as_unsigned(condition); }
#else
GS_INLINE Words increment_if(Integers condition, Words x) { return x - as_unsigned(condition); }
GS_INLINE Integers absolute(Integers x) { return (x ^ (x >> 31)) - (x >> 31); }
GS_INLINE Integers larger_of(Integers a, Integers b) { return select(a < b, b, a); }
GS_INLINE Integers smaller_of(Integers a, Integers b) { return select(a < b, a, b); }
#endif

template <int kCount>
GS_INLINE Vector<float, kCount> magnitude(Vector<float, kCount> x) {
  using Bits = Vector<std::uint32_t, kCount>;
  return Vector<float, kCount>::of((Bits::of(x.v) & ~kSign).v);
}
template <int kCount>
GS_INLINE Vector<double, kCount> magnitude(Vector<double, kCount> x) {
  using Bits = Vector<std::int64_t, kCount>;
  return Vector<double, kCount>::of((Bits::of(x.v) & INT64_MAX).v);
}

#if defined(__AVX512F__)
// The masks select every lane; without one, GCC 12 warns about its own header.
GS_INLINE Floats root(Floats x) { return _mm512_maskz_sqrt_ps(0xffff, x.v); }
GS_INLINE Doubles root(Doubles x) { return _mm512_maskz_sqrt_pd(0xff, x.v); }
#elif defined(__AVX2__)
GS_INLINE Floats root(Floats x) { return _mm256_sqrt_ps(x.v); }
GS_INLINE Doubles root(Doubles x) { return _mm256_sqrt_pd(x.v); }
#endif
#if defined(__SSE2__)
GS_INLINE Short<float> root(Short<float> x) { return _mm_sqrt_ps(x.v); }
GS_INLINE Short<double> root(Short<double> x) { return _mm_sqrt_pd(x.v); }
#elif defined(__aarch64__)
GS_INLINE Floats root(Floats x) { return vsqrtq_f32(x.v); }
GS_INLINE Doubles root(Doubles x) { return vsqrtq_f64(x.v); }
#else
template <class T, int kCount>
GS_INLINE Vector<T, kCount> root(Vector<T, kCount> x) {
  for (int lane = 0; lane < kCount; ++lane) x.v[lane] = rules::root(x.v[lane]);
  return x;
}
#endif

// Whether a comparison is true in any lane.
template <class T, int kCount>
GS_INLINE bool any(Vector<T, kCount> mask) {
  std::uint64_t parts[sizeof mask / sizeof(std::uint64_t)], all = 0;
  __builtin_memcpy(parts, &mask, sizeof mask);
  for (const std::uint64_t part : parts) all |= part;
  return all != 0;
}

// Loads and stores a register or a scalar; the memory need not be aligned.
template <class V, class T>
GS_INLINE V load(const T* from) {
  if constexpr (sizeof(V) == sizeof(T)) {
    return *from;
  } else {
    typedef typename V::Native Unaligned __attribute__((aligned(sizeof(T)), may_alias));
    return typename V::Native(*reinterpret_cast<const Unaligned*>(from));
  }
}
template <class T>
GS_INLINE void store(T* to, T x) {
  *to = x;
}
template <class T, int kCount>
GS_INLINE void store(T* to, Vector<T, kCount> x) {
  typedef typename Vector<T, kCount>::Native Unaligned __attribute__((aligned(sizeof(T)), may_alias));
  *reinterpret_cast<Unaligned*>(to) = x.v;
}

}  // namespace
}  // namespace gradstep::cpu
