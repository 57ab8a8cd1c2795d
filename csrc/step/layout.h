#pragma once

#include "exec/tensor_job.h"
#include "step/array.h"

namespace gradstep::step {

// The walk that reads the parameter as it lies in memory: its axes from the longest stride to the shortest, without
// those of one element, neighbours joined where every stream allows. Where bits depend on an element's place,
// `in_order` keeps the axes in the order of the indices. `arrays` are the streams of a tensor that is computed in
// `compute`, the parameter first, all of one shape; null: there is none. With
// `rows`, the indices of `count` rows as in Layout, the gradient has these rows alone, and their axis is the first of
// the walk.
Layout make_layout(const Array* const (&arrays)[kMaxStreams], Compute compute, bool in_order,
                   const std::int64_t* rows = nullptr, std::int64_t count = 0);

}  // namespace gradstep::step
