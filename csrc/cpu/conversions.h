#pragma once

#include <cstddef>
#include <cstdint>

#include "codecs/all.h"
#include "cpu/noise.h"
#include "exec/norm.h"

// Between what is stored and the tiles of values that kernels work on, and what else is done to tiles.
// csrc/cpu/conversions.cpp is compiled once per instruction set.
namespace gradstep::cpu {

// Draws the words of places, which serve a whole tensor, and those of the groups of elements [begin, end) of one span.
using DrawPlaces = void (*)(Noise& noise);
using DrawGroups = void (*)(Noise& noise, std::int64_t begin, std::int64_t end);

// Stored elements from `first`, a multiple of kBlock, on. `scales` are those of their blocks, where they have any.
using Decode = void (*)(const std::byte* stored, const float* scales, std::int64_t size, float* values);

// To nearest where there is no noise; else that of the span in which these elements lie.
using Encode = void (*)(const float* values, std::int64_t size, const Noise* noise, std::int64_t first,
                        std::byte* stored, float* scales);

struct Conversion {
  Decode decode;  // null where the type is native
  Encode encode;
};

// Adds the squares of values to the sum's lanes, of which the first gets the first. Each is that of a value as a
// double. `prefetches` changes no bit.
using AddSquares = void (*)(const std::byte* values, std::int64_t size, double* lanes, bool prefetches);

// What one instruction set has.
struct Conversions {
  Conversion of[kDTypeCount];
  DrawPlaces draw_places;
  DrawGroups draw_groups;
  AddSquares add_squares_floats, add_squares_doubles;

  const Conversion& operator[](DType dtype) const { return of[static_cast<int>(dtype)]; }
};

}  // namespace gradstep::cpu
