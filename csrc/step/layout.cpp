#include "step/layout.h"

#include <algorithm>
#include <cstdlib>

namespace gradstep::step {
namespace {

// Whether axes `outer` and `inner` are contiguous with each other in every stream.
bool joins(const Array* const (&arrays)[kMaxStreams], int outer, int inner) {
  return std::all_of(std::begin(arrays), std::end(arrays), [=](const Array* a) {
    return a == nullptr || a->strides[outer] == a->strides[inner] * a->shape[inner];
  });
}

// Sets the shape of a walk, and the strides of all streams.
void set_axes(Layout& layout, const Array* const (&arrays)[kMaxStreams], bool in_order, bool has_rows,
              std::int64_t count) {
  const Array& param = *arrays[0];
  const int outer = has_rows ? 1 : 0;  // axes that are neither moved nor joined
  std::vector<int> axes;
  for (int axis = 0; axis < param.rank; ++axis) {
    if (axis < outer || param.shape[axis] != 1) axes.push_back(axis);
  }
  const auto further = [&](int a, int b) { return std::abs(param.strides[a]) > std::abs(param.strides[b]); };
  if (!in_order) std::stable_sort(axes.begin() + outer, axes.end(), further);

  for (std::size_t i = 0; i < axes.size(); ++i) {
    const int axis = axes[i];
    const bool joined = static_cast<int>(i) > outer && joins(arrays, axes[i - 1], axis);
    if (joined) {
      layout.shape.back() *= param.shape[axis];
    } else {
      layout.shape.push_back(axis < outer ? count : param.shape[axis]);
    }
    for (int s = 0; s < kMaxStreams; ++s) {
      if (arrays[s] == nullptr) continue;
      if (joined) layout.strides[s].pop_back();
      layout.strides[s].push_back(arrays[s]->strides[axis]);
    }
  }
  if (static_cast<int>(layout.shape.size()) == outer) {
    layout.shape.push_back(1);
    for (int s = 0; s < kMaxStreams; ++s) {
      if (arrays[s] != nullptr) layout.strides[s].push_back(0);
    }
  }
}

}  // namespace

Layout make_layout(const Array* const (&arrays)[kMaxStreams], Compute compute, bool in_order, const std::int64_t* rows,
                   std::int64_t count) {
  const Array& param = *arrays[0];
  Layout layout;
  const bool packed = rows == nullptr && std::all_of(std::begin(arrays), std::end(arrays),
                                                     [](const Array* a) { return a == nullptr || is_packed(*a); });
  if (packed) {
    layout.shape.push_back(size_of(param));
  } else {
    set_axes(layout, arrays, in_order, rows != nullptr, count);
  }
  layout.rows = rows;
  for (int s = 0; s < kMaxStreams; ++s) {
    if (arrays[s] == nullptr) continue;
    const Array walked{arrays[s]->data, arrays[s]->dtype, static_cast<int>(layout.shape.size()), layout.shape.data(),
                       layout.strides[s].data()};
    if (!packed && is_packed(walked) && (rows == nullptr || s == kGradient)) layout.strides[s].clear();
    layout.packed = layout.packed && layout.strides[s].empty();
    layout.native = layout.native && is_native(arrays[s]->dtype, compute);
    layout.dtypes[s] = arrays[s]->dtype;
    if (s < kKernelStreams) layout.storage = with_stream(layout.storage, s, arrays[s]->dtype);
    layout.has_more = layout.has_more || s >= kCopy;
    layout.scales[s] = arrays[s]->scales;
  }
  if (arrays[kAverage] != nullptr) layout.average = arrays[kAverage]->data;
  return layout;
}

}  // namespace gradstep::step
