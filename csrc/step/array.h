#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "codecs/all.h"

namespace gradstep::step {

// Somebody's array: where it is and how it lies.
struct Array {
  std::byte* data;
  DType dtype;
  int rank;
  const std::int64_t* shape;
  const std::int64_t* strides;  // bytes
  float* scales = nullptr;      // of its blocks, where the type has scales
};

// The bytes [begin, end) between which an array's elements lie; equal where it has none.
struct Extent {
  std::uintptr_t begin, end;
};

inline Extent extent(const Array& array) {
  const auto first = reinterpret_cast<std::uintptr_t>(array.data);
  Extent bytes{first, first + static_cast<std::uintptr_t>(item_size(array.dtype))};
  for (int axis = 0; axis < array.rank; ++axis) {
    if (array.shape[axis] == 0) return {first, first};
    const std::int64_t reach = (array.shape[axis] - 1) * array.strides[axis];
    (reach < 0 ? bytes.begin : bytes.end) += static_cast<std::uintptr_t>(reach);
  }
  return bytes;
}

// Whether the first `rank` numbers are the same. A loop: they are few, and for them std::equal calls memcmp.
inline bool same(const std::int64_t* kept, const std::int64_t* given, int rank) {
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

// Whether it is aligned, and without gaps in the order of its indices.
bool is_packed(const Array& array);

// Whether two indices name the same byte.
bool overlaps_itself(const Array& array);

// Whether two arrays surely share no byte: their extents do not meet, or they interlace, as the columns of one matrix
// do.
bool surely_apart(const Array& a, const Array& b);

// An array with a shape and strides of its own.
struct KeptArray {
  std::byte* data = nullptr;
  DType dtype{};
  std::vector<std::int64_t> shape, strides;
  float* scales = nullptr;

  KeptArray() = default;
  explicit KeptArray(const Array& a)
      : data(a.data),
        dtype(a.dtype),
        shape(a.shape, a.shape + a.rank),
        strides(a.strides, a.strides + a.rank),
        scales(a.scales) {}

  Array view() const { return {data, dtype, static_cast<int>(shape.size()), shape.data(), strides.data(), scales}; }
};

}  // namespace gradstep::step
