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

// Decodes `size` stored elements, the first of which begins a block. `scales` begins at the scale of that block; it is
// unused for types without scales.
using Decode = void (*)(const std::byte* stored, const float* scales, std::int64_t size, float* values);

// Encodes `size` values, the first of which is element `first` of the tensor, a multiple of kBlock. Without noise,
// values are rounded to nearest; otherwise `noise` is that of the span in which the elements lie.
using Encode = void (*)(const float* values, std::int64_t size, const Noise* noise, std::int64_t first,
                        std::byte* stored, float* scales);

struct Conversion {
  Decode decode;  // null if the type is native
  Encode encode;
};

// Converts values to double and adds their squares to the lanes of a sum; the first value goes to lane 0. `prefetches`
// does not affect results.
using AddSquares = void (*)(const std::byte* values, std::int64_t size, double* lanes, bool prefetches);

// The conversions of one instruction set.
struct Conversions {
  Conversion of[kDTypeCount];
  DrawPlaces draw_places;
  DrawGroups draw_groups;
  AddSquares add_squares_floats, add_squares_doubles;

  const Conversion& operator[](DType dtype) const { return of[static_cast<int>(dtype)]; }
};

}  // namespace gradstep::cpu
