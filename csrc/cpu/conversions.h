#pragma once

#include <cstddef>
#include <cstdint>

#include "codecs/all.h"
#include "cpu/noise.h"
#include "exec/norm.h"

// Conversions between stored items and tiles of values, and other operations on tiles. csrc/cpu/conversions.cpp is
// compiled once per instruction set.
namespace gradstep::cpu {

// Draws the words of the places, which serve the whole tensor, or of the groups of elements [begin, end), which lie in
// one span.
using DrawPlaces = void (*)(Noise& noise);
using DrawGroups = void (*)(Noise& noise, std::int64_t begin, std::int64_t end);

// Stored elements from `first`, a multiple of kBlock, on, as values of the compute type T: exactly, or rounded to
// nearest even. `scales` are those of their blocks, where they have any.
template <class T>
using Decode = void (*)(const std::byte* stored, const float* scales, std::int64_t size, T* values);

// To nearest where there is no noise; else that of the span in which these elements lie.
template <class T>
using Encode = void (*)(const T* values, std::int64_t size, const Noise* noise, std::int64_t first, std::byte* stored,
                        float* scales);

// Between a type and T. Null where it is T, or no stream of a tensor that is computed in T is stored or written so.
template <class T>
struct Conversion {
  Decode<T> decode;
  Encode<T> encode;
};

// Converts values to double and adds their squares to the lanes of a sum; the first value goes to lane 0. `prefetches`
// does not affect results.
using AddSquares = void (*)(const std::byte* values, std::int64_t size, double* lanes, bool prefetches);

// average[i] = keep * average[i] + take * x[i].
template <class T>
using Average = void (*)(T* average, const T* x, std::int64_t size, T keep, T take);

// Copies `width` columns of `height` items `step` bytes apart to rows of `pitch` bytes.
using GatherColumns = void (*)(const std::byte* const* columns, std::int64_t width, std::int64_t height,
                               std::int64_t step, std::byte* to, std::int64_t pitch);

// The conversions of one instruction set.
struct Conversions {
  Conversion<float> floats[kDTypeCount];
  Conversion<double> doubles[kDTypeCount];
  DrawPlaces draw_places;
  DrawGroups draw_groups;
  AddSquares add_squares_floats, add_squares_doubles;
  Average<float> average_floats;
  Average<double> average_doubles;
  GatherColumns gather_columns[3];  // for items of 2, 4 and 8 bytes

  template <class T>
  Average<T> average() const {
    if constexpr (sizeof(T) == sizeof(double)) {
      return average_doubles;
    } else {
      return average_floats;
    }
  }

  template <class T>
  const Conversion<T>& to(DType dtype) const {
    if constexpr (sizeof(T) == sizeof(double)) {
      return doubles[static_cast<int>(dtype)];
    } else {
      return floats[static_cast<int>(dtype)];
    }
  }
};

}  // namespace gradstep::cpu
