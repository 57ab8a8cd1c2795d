#pragma once

#include "cpu/job.h"
#include "step/array.h"

namespace gradstep::step {

// The walk that reads the parameter as it lies in memory: its axes from the longest stride to the shortest, without
// those of one element, neighbours joined where every stream allows. `arrays` are the tensor's streams, the parameter
// first, all of one shape and item size; null: not kept.
cpu::Layout make_layout(const Array* const (&arrays)[cpu::kMaxStreams]);

}  // namespace gradstep::step
