// Plans, layouts, overlaps and row indices for arbitrary shapes and strides, against enumerations of all elements.
#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <set>
#include <stdexcept>
#include <vector>

#include "../cpp/plan_checks.h"
#include "step/array.h"
#include "step/layout.h"
#include "step/plan.h"
#include "step/ranges.h"
#include "step/rows.h"

namespace {

using namespace gradstep;
using Numbers = std::vector<std::int64_t>;
using step::Array;

void require(bool condition) {
  if (!condition) std::abort();
}

// An array whose memory is never read.
struct Fake {
  Numbers shape, strides;
  DType dtype = DType::kFloat32;
  std::uintptr_t address = 0;

  Array view() const {
    return {reinterpret_cast<std::byte*>(address), dtype, static_cast<int>(shape.size()), shape.data(), strides.data()};
  }
};

// Calls visit(offset in bytes) for all elements, last axis fastest.
template <class Visit>
void each_offset(const Numbers& shape, const Numbers& strides, const Visit& visit) {
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return;
  Numbers index(shape.size(), 0);
  for (;;) {
    std::int64_t offset = 0;
    for (std::size_t axis = 0; axis < shape.size(); ++axis) offset += index[axis] * strides[axis];
    visit(offset);
    std::size_t axis = shape.size();
    while (axis > 0 && ++index[axis - 1] == shape[axis - 1]) index[--axis] = 0;
    if (axis == 0) return;
  }
}

Numbers offsets_of(const Numbers& shape, const Numbers& strides) {
  Numbers all;
  each_offset(shape, strides, [&](std::int64_t offset) { all.push_back(offset); });
  return all;
}

Numbers packed_strides(const Numbers& shape, std::int64_t item) {
  Numbers strides(shape.size());
  for (std::size_t axis = shape.size(); axis-- > 0; item *= std::max<std::int64_t>(shape[axis], 1))
    strides[axis] = item;
  return strides;
}

// All bytes of an array; `twice` is whether one belongs to two elements.
std::set<std::uintptr_t> bytes_of(const Fake& array, bool& twice) {
  std::set<std::uintptr_t> bytes;
  twice = false;
  each_offset(array.shape, array.strides, [&](std::int64_t offset) {
    for (std::int64_t byte = 0; byte < item_size(array.dtype); ++byte) {
      twice = !bytes.insert(array.address + static_cast<std::uintptr_t>(offset + byte)).second || twice;
    }
  });
  return bytes;
}

DType some_dtype(FuzzedDataProvider& data, unsigned role) {
  std::vector<DType> fitting;
  for (int i = 0; i < kDTypeCount; ++i) {
    if ((kDTypes[i].roles & role) != 0) fitting.push_back(static_cast<DType>(i));
  }
  return fitting[data.ConsumeIntegralInRange<std::size_t>(0, fitting.size() - 1)];
}

Numbers some_shape(FuzzedDataProvider& data) {
  Numbers shape(data.ConsumeIntegralInRange<std::size_t>(0, 4));
  for (std::int64_t& extent : shape) extent = data.ConsumeIntegralInRange<std::int64_t>(0, 5);
  return shape;
}

// Packed, with permuted and flipped axes and gaps, or with any strides.
Fake some_array(FuzzedDataProvider& data, const Numbers& shape, DType dtype) {
  Fake array{shape, packed_strides(shape, item_size(dtype)), dtype,
             0x100000 + data.ConsumeIntegralInRange<std::uintptr_t>(0, 64)};
  switch (data.ConsumeIntegralInRange<int>(0, 2)) {
    case 0:
      return array;
    case 1: {
      Numbers order(shape.size());
      for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::int64_t>(i);
      for (std::size_t i = order.size(); i > 1; --i) {
        std::swap(order[i - 1], order[data.ConsumeIntegralInRange<std::size_t>(0, i - 1)]);
      }
      std::int64_t reach = item_size(dtype);
      for (const std::int64_t axis : order) {
        const auto at = static_cast<std::size_t>(axis);
        const std::int64_t stride = reach + data.ConsumeIntegralInRange<std::int64_t>(0, 9);
        array.strides[at] = data.ConsumeBool() ? -stride : stride;
        reach = stride * std::max<std::int64_t>(shape[at], 1);
      }
      return array;
    }
    default:
      for (std::int64_t& stride : array.strides) stride = data.ConsumeIntegralInRange<std::int64_t>(-80, 80);
      return array;
  }
}

void check_plan(FuzzedDataProvider& data) {
  plan_checks::Sizes sizes(data.ConsumeIntegralInRange<std::size_t>(0, 12));
  for (std::int64_t& size : sizes) {
    const int bits = data.ConsumeIntegralInRange<int>(0, 20);
    size = data.ConsumeIntegralInRange<std::int64_t>(0, std::int64_t{1} << bits);
  }
  const auto grain = data.ConsumeIntegral<std::int64_t>();
  require(plan_checks::holds(step::make_plan(sizes.data(), sizes.size(), grain), sizes, grain));
}

void check_overlaps(FuzzedDataProvider& data) {
  const Numbers shape = some_shape(data), other = some_shape(data);
  const Fake a = some_array(data, shape, some_dtype(data, kAsGradient));
  const Fake b = some_array(data, other, some_dtype(data, kAsGradient));
  bool twice = false, again = false;
  const auto ours = bytes_of(a, twice), theirs = bytes_of(b, again);
  require(step::overlaps_itself(a.view()) == twice);
  const bool meet = std::any_of(ours.begin(), ours.end(), [&](std::uintptr_t byte) { return theirs.count(byte) != 0; });
  if (step::surely_apart(a.view(), b.view())) require(!meet);
  const step::Extent extent = step::extent(a.view()), of_b = step::extent(b.view());
  if (ours.empty()) {
    require(extent.begin == extent.end);
  } else {
    require(extent.begin == *ours.begin() && extent.end == *ours.rbegin() + 1);
  }
  const step::Extent gap = step::Ranges({extent}).gap_around(of_b);
  if (gap.begin != gap.end) require(ours.empty() || gap.end <= extent.begin || gap.begin >= extent.end);
  const Numbers packed = packed_strides(shape, item_size(a.dtype));
  if (step::is_packed(a.view())) require(offsets_of(shape, a.strides) == offsets_of(shape, packed));
}

// Every stream's element of one index is visited at the same place of the walk, each once.
void check_layout(FuzzedDataProvider& data) {
  const Numbers shape = some_shape(data);
  const bool in_order = data.ConsumeBool(), by_rows = !shape.empty() && data.ConsumeBool();
  const std::int64_t count = by_rows ? data.ConsumeIntegralInRange<std::int64_t>(0, shape[0]) : 0;
  Numbers rows;
  for (std::int64_t row = 0; by_rows && static_cast<std::int64_t>(rows.size()) < count; ++row) {
    const std::int64_t left = shape[0] - row, wanted = count - static_cast<std::int64_t>(rows.size());
    if (left == wanted || data.ConsumeBool()) rows.push_back(row);
  }
  rows.push_back(0);

  std::vector<Fake> fakes(kMaxStreams);
  std::vector<Array> views(kMaxStreams);
  const Array* arrays[kMaxStreams] = {};
  for (int s = 0; s < kMaxStreams; ++s) {
    if (s > kGradient && !data.ConsumeBool()) continue;
    Numbers own = shape;
    if (by_rows && s == kGradient) own[0] = count;
    const auto at = static_cast<std::size_t>(s);
    fakes[at] = some_array(data, own, some_dtype(data, kStreams[s].roles));
    views[at] = fakes[at].view();
    arrays[s] = &views[at];
  }
  const DType param = fakes[0].dtype;
  const Layout layout =
      step::make_layout(arrays, compute_of(param), in_order, by_rows ? rows.data() : nullptr, by_rows ? count : 0);

  Numbers visited = shape;  // of what the step visits: all elements, or those of some rows
  if (by_rows) visited[0] = count;
  std::vector<Numbers> walked, expected;
  std::int64_t elements = 1;
  for (const std::int64_t extent : visited) elements *= extent;
  require(layout.size() == elements && !layout.shape.empty());
  walked.resize(static_cast<std::size_t>(elements));
  expected.resize(static_cast<std::size_t>(elements));
  for (int s = 0; s < kMaxStreams; ++s) {
    if (arrays[s] == nullptr) continue;
    const auto at = static_cast<std::size_t>(s);
    Numbers strides = layout.strides[s];
    if (strides.empty()) strides = packed_strides(layout.shape, item_size(fakes[at].dtype));
    require(strides.size() == layout.shape.size());
    const Numbers walk = offsets_of(layout.shape, strides), plain = offsets_of(visited, fakes[at].strides);
    require(walk.size() == walked.size() && plain.size() == walked.size());
    for (std::size_t i = 0; i < walk.size(); ++i) {
      walked[i].push_back(walk[i]);
      expected[i].push_back(plain[i]);
    }
  }
  if (!in_order) {
    std::sort(walked.begin(), walked.end());
    std::sort(expected.begin(), expected.end());
  }
  require(walked == expected);
}

void check_rows(FuzzedDataProvider& data) {
  const int item = 1 << data.ConsumeIntegralInRange<int>(0, 3);
  const bool is_signed = data.ConsumeBool();
  const auto rows = data.ConsumeBool() ? data.ConsumeIntegralInRange<std::int64_t>(0, 300)
                                       : data.ConsumeIntegralInRange<std::int64_t>(0, std::int64_t{1} << 62);
  const std::vector<std::uint8_t> bytes = data.ConsumeRemainingBytes<std::uint8_t>();
  const auto size = static_cast<std::int64_t>(bytes.size()) / item;
  const step::IndexArray indices{
      reinterpret_cast<const std::byte*>(bytes.data()), item, is_signed, size, item, nullptr};
  std::set<std::uint64_t> expected;
  bool fits = true;
  for (std::int64_t i = 0; i < size; ++i) {
    std::uint64_t index = 0;
    std::memcpy(&index, bytes.data() + i * item, static_cast<std::size_t>(item));  // little-endian
    const int above = 64 - 8 * item;
    const bool negative = is_signed && (index << above >> 63) != 0;
    fits = fits && !negative && index < static_cast<std::uint64_t>(rows);
    expected.insert(index);
  }
  step::RowGradient gradient;
  gradient.assign(indices, {nullptr, DType::kFloat32, 0, nullptr, nullptr});
  try {
    gradient.read(rows, "grads");
  } catch (const std::invalid_argument&) {
    return require(!fits);
  }
  require(fits && gradient.count() == static_cast<std::int64_t>(expected.size()));
  std::size_t place = 0;
  for (const std::uint64_t row : expected) require(gradient.rows()[place++] == static_cast<std::int64_t>(row));
  require(gradient.rows()[place] == 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t size) {
  FuzzedDataProvider data(bytes, size);
  constexpr void (*kChecks[])(FuzzedDataProvider&) = {check_plan, check_overlaps, check_layout, check_rows};
  kChecks[data.ConsumeIntegralInRange<std::size_t>(0, std::size(kChecks) - 1)](data);
  return 0;
}
