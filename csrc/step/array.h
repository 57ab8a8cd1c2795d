#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "codecs/all.h"

namespace gradstep::step {

// A view of an array in the caller's memory.
struct Array {
  std::byte* data;
  DType dtype;
  int rank;
  const std::int64_t* shape;
  const std::int64_t* strides;  // bytes
  float* scales = nullptr;      // block scales, for types that have them
};

// The bytes [begin, end) that contain an array's elements; begin == end if it has none.
struct Extent {
  std::uintptr_t begin, end;
};

inline Extent extent(std::uintptr_t first, std::int64_t item_size, int rank, const std::int64_t* shape,
                     const std::int64_t* strides) {
  Extent bytes{first, first + static_cast<std::uintptr_t>(item_size)};
  for (int axis = 0; axis < rank; ++axis) {
    if (shape[axis] == 0) return {first, first};
    const std::int64_t reach = (shape[axis] - 1) * strides[axis];
    (reach < 0 ? bytes.begin : bytes.end) += static_cast<std::uintptr_t>(reach);
  }
  return bytes;
}

inline Extent extent(const Array& array) {
  return extent(reinterpret_cast<std::uintptr_t>(array.data), item_size(array.dtype), array.rank, array.shape,
                array.strides);
}

// Whether the first `rank` numbers are equal. A plain loop, because std::equal calls memcmp, which is slower for a few
// numbers.
template <class Length>  // another type of 64 bits in some libraries
bool same(const std::int64_t* kept, const Length* given, int rank) {
  for (int axis = 0; axis < rank; ++axis) {
    if (kept[axis] != given[axis]) return false;
  }
  return true;
}

inline std::int64_t size_of(const Array& array) {
  std::int64_t size = 1;
  for (int axis = 0; axis < array.rank; ++axis) size *= array.shape[axis];
  return size;
}

// Whether an array is aligned and C-contiguous.
bool is_packed(const Array& array);

// Whether any byte belongs to two elements.
bool overlaps_itself(const Array& array);

// Returns true only if two arrays share no byte: their extents are disjoint, or they interleave like the columns of a
// matrix.
bool surely_apart(const Array& a, const Array& b);

// An array that owns its shape and strides, but not its data.
struct KeptArray {
  std::byte* data = nullptr;
  float* scales = nullptr;
  DType dtype{};
  int rank = 0;
  std::vector<std::int64_t> axes;  // the shape, then the strides

  KeptArray() = default;
  explicit KeptArray(const Array& a)
      : data(a.data), scales(a.scales), dtype(a.dtype), rank(a.rank), axes(2 * static_cast<std::size_t>(rank)) {
    std::copy_n(a.strides, rank, std::copy_n(a.shape, rank, axes.begin()));
  }

  Array view() const { return {data, dtype, rank, axes.data(), axes.data() + rank, scales}; }
};

}  // namespace gradstep::step
