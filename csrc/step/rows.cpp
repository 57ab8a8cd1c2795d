#include "step/rows.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace gradstep::step {
namespace {

constexpr int kDigit = 11;  // bits that one pass of the sort orders by: its counts fit into L1

// Calls visit(place, row) for each index. Unsigned ones above the signed ones become negative, and so are refused.
template <class Integer, class Visit>
void each_index(const IndexArray& indices, const Visit& visit) {
  const std::byte* at = indices.data;
  for (std::int64_t i = 0; i < indices.size; ++i, at += indices.stride) {
    Integer index;
    std::memcpy(&index, at, sizeof index);
    visit(i, static_cast<std::int64_t>(index));
  }
}

template <class Visit>
void each_index(const IndexArray& indices, const Visit& visit) {
  switch (indices.item_size) {
    case 1:
      return indices.is_signed ? each_index<std::int8_t>(indices, visit) : each_index<std::uint8_t>(indices, visit);
    case 2:
      return indices.is_signed ? each_index<std::int16_t>(indices, visit) : each_index<std::uint16_t>(indices, visit);
    case 4:
      return indices.is_signed ? each_index<std::int32_t>(indices, visit) : each_index<std::uint32_t>(indices, visit);
    default:
      return each_index<std::int64_t>(indices, visit);
  }
}

}  // namespace

void RowGradient::read(std::int64_t rows, const std::string& name) {
  const auto size = static_cast<std::size_t>(indices_.size);
  rows_.resize(size);
  is_sorted_ = true;
  std::int64_t before = -1, largest = 0;
  each_index(indices_, [&](std::int64_t place, std::int64_t row) {
    if (row < 0 || row >= rows) {
      const bool wraps = row < 0 && !indices_.is_signed;
      throw std::invalid_argument(
          name + " has the index " + (wraps ? std::to_string(static_cast<std::uint64_t>(row)) : std::to_string(row)) +
          " at place " + std::to_string(place) + " of its indices, but its parameter has " + std::to_string(rows) +
          (rows == 1 ? " row" : " rows") + (row < 0 && !wraps ? "; negative indices are not supported" : ""));
    }
    rows_[static_cast<std::size_t>(place)] = row;
    is_sorted_ = is_sorted_ && row > before;
    largest = std::max(largest, row);
    before = row;
  });
  if (!is_sorted_) sort(largest);
  rows_.push_back(0);
}

// A stable sort by digits, from the lowest.
void RowGradient::sort(std::int64_t largest) {
  const std::size_t size = rows_.size();
  order_.resize(size);
  scratch_.resize(size);
  for (std::size_t i = 0; i < size; ++i) order_[i] = {rows_[i], static_cast<std::int64_t>(i)};
  constexpr std::int64_t kDigits = std::int64_t{1} << kDigit;
  for (int shift = 0; shift < 63 && largest >> shift > 0; shift += kDigit) {
    std::size_t starts[kDigits + 1] = {};
    const auto digit = [=](const Occurrence& of) { return static_cast<std::size_t>((of.row >> shift) % kDigits); };
    for (const Occurrence& of : order_) ++starts[digit(of) + 1];
    for (std::int64_t d = 0; d < kDigits; ++d) starts[d + 1] += starts[d];
    for (const Occurrence& of : order_) scratch_[starts[digit(of)]++] = of;
    std::swap(order_, scratch_);
  }
  rows_.clear();
  first_.clear();
  places_.resize(size);
  for (std::size_t i = 0; i < size; ++i) {
    if (i == 0 || order_[i].row != order_[i - 1].row) {
      rows_.push_back(order_[i].row);
      first_.push_back(static_cast<std::int64_t>(i));
    }
    places_[i] = order_[i].place;
  }
  first_.push_back(static_cast<std::int64_t>(size));
}

Array RowGradient::sum(Compute compute, Backend& backend) {
  const Array given = values_.view();
  if (is_sorted_) return given;
  const auto rank = static_cast<std::size_t>(given.rank);
  shape_.assign(given.shape, given.shape + rank);
  shape_[0] = count();
  strides_.resize(rank);
  std::int64_t length = 1, stride = gradstep::size_of(compute);
  for (std::size_t axis = rank; axis-- > 0; stride *= shape_[axis]) strides_[axis] = stride;
  for (std::size_t axis = 1; axis < rank; ++axis) length *= shape_[axis];
  const auto bytes = static_cast<std::size_t>(count() * length * gradstep::size_of(compute));
  if (sums_ == nullptr || bytes > room_) {
    sums_ = backend.allocate(bytes);
    room_ = bytes;
  }
  backend.sum_rows(given, compute, {first_.data(), places_.data(), length, sums_.get()}, count());
  return {sums_.get(), native_of(compute), given.rank, shape_.data(), strides_.data()};
}

}  // namespace gradstep::step
