#pragma once

#include <algorithm>
#include <vector>

#include "step/array.h"

namespace gradstep::step {

// The byte ranges of many arrays, joined where they touch; asked at every step whether a gradient may lie in one.
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

  bool meet(Extent extent) const {
    const auto after = std::upper_bound(joined_.begin(), joined_.end(), extent.begin,
                                        [](std::uintptr_t byte, Extent range) { return byte < range.end; });
    return after != joined_.end() && after->begin < extent.end && extent.begin != extent.end;
  }

 private:
  std::vector<Extent> joined_;
};

}  // namespace gradstep::step
