#include "step/array.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <utility>

namespace gradstep::step {

bool is_packed(const Array& array) {
  const std::int64_t size = item_size(array.dtype);
  if (reinterpret_cast<std::uintptr_t>(array.data) % static_cast<std::uintptr_t>(size) != 0) return false;
  std::int64_t expected = size;
  bool packed = true;
  for (int axis = array.rank; axis-- > 0; expected *= array.shape[axis]) {
    packed = packed && (array.shape[axis] == 1 || array.strides[axis] == expected);
  }
  return packed || expected == 0;
}

bool overlaps_itself(const Array& array) {
  if (is_packed(array)) return false;
  const std::int64_t size = item_size(array.dtype);
  std::vector<std::pair<std::int64_t, std::int64_t>> axes;  // stride, length
  for (int axis = 0; axis < array.rank; ++axis) {
    if (array.shape[axis] == 0) return false;
    if (array.shape[axis] > 1) axes.emplace_back(std::abs(array.strides[axis]), array.shape[axis]);
  }
  std::sort(axes.begin(), axes.end());

  // Usually the stride of every axis exceeds the extent of the inner axes.
  std::int64_t reach = size;
  bool nested = true;
  for (const auto& [stride, length] : axes) {
    nested = nested && stride >= reach;
    reach += stride * (length - 1);
  }
  if (nested) return false;

  // More elements than fit into the extent must overlap. This also bounds the length of the list below.
  std::int64_t room = reach / size;
  for (const auto& [stride, length] : axes) room /= length;
  if (room == 0) return true;

  std::vector<std::int64_t> offsets{0};
  for (const auto& [stride, length] : axes) {
    const std::size_t inner = offsets.size();
    for (std::int64_t i = 1; i < length; ++i) {
      for (std::size_t k = 0; k < inner; ++k) offsets.push_back(offsets[k] + i * stride);
    }
  }
  std::sort(offsets.begin(), offsets.end());
  const auto close = [=](std::int64_t a, std::int64_t b) { return b - a < size; };
  return std::adjacent_find(offsets.begin(), offsets.end(), close) != offsets.end();
}

bool surely_apart(const Array& a, const Array& b) {
  const Extent x = extent(a), y = extent(b);
  if (x.begin >= y.end || y.begin >= x.end) return true;
  // Elements of both arrays begin at multiples of `period` from their array's first element.
  std::int64_t period = 0;
  for (const Array* array : {&a, &b}) {
    for (int axis = 0; axis < array->rank; ++axis) {
      if (array->shape[axis] > 1) period = std::gcd(period, array->strides[axis]);
    }
  }
  if (period == 0) return false;
  const auto distance =
      static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(b.data) - reinterpret_cast<std::intptr_t>(a.data));
  const std::int64_t from_a_to_b = (distance % period + period) % period;
  return from_a_to_b >= item_size(a.dtype) && period - from_a_to_b >= item_size(b.dtype);
}

}  // namespace gradstep::step
