#pragma once

#include <cstdint>
#include <vector>

#include "cpu/tensor.h"
#include "step/array.h"

namespace gradstep::step {

// The order in which a tensor's elements are walked, chosen so that the parameter is read as it lies in memory:
// its axes from the longest stride to the shortest, without those of one element, neighbours joined where every stream
// allows.
struct Layout {
  std::vector<std::int64_t> shape;                      // never empty
  std::vector<std::int64_t> strides[cpu::kMaxStreams];  // bytes; empty: packed and aligned
};

// `arrays` are the tensor's streams, the parameter first, all of one shape and item size; null: not kept.
Layout make_layout(const Array* const (&arrays)[cpu::kMaxStreams]);

}  // namespace gradstep::step
