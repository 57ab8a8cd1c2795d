#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <vector>

#include "step/array.h"

namespace gradstep::step {

// The byte ranges of many arrays, merged where they touch. Every step looks up whether a gradient may overlap one.
class Ranges {
 public:
  Ranges() = default;

  explicit Ranges(std::vector<Extent> extents) {
    std::sort(extents.begin(), extents.end(), [](Extent a, Extent b) { return a.begin < b.begin; });
    for (const Extent& extent : extents) {
      if (extent.begin == extent.end) continue;
      if (!joined_.empty() && extent.begin <= joined_.back().end) {
        joined_.back().end = std::max(joined_.back().end, extent.end);
      } else {
        joined_.push_back(extent);
      }
    }
  }

  // The gap between two ranges that contains an extent; empty if the extent overlaps a range.
  Extent gap_around(Extent extent) const {
    const auto after = std::upper_bound(joined_.begin(), joined_.end(), extent.begin,
                                        [](std::uintptr_t byte, Extent range) { return byte < range.end; });
    const std::uintptr_t from = after == joined_.begin() ? 0 : std::prev(after)->end;
    const std::uintptr_t to = after == joined_.end() ? UINTPTR_MAX : after->begin;
    return extent.end <= to ? Extent{from, to} : Extent{0, 0};
  }

 private:
  std::vector<Extent> joined_;
};

}  // namespace gradstep::step
