#pragma once

#include "exec/tensor_job.h"
#include "step/array.h"

namespace gradstep::step {

// Makes the layout whose traversal follows the parameter's memory: axes are sorted from the longest stride to the
// shortest, axes of length one are dropped, and adjacent axes are joined if every stream allows it. If bits depend on
// an element's index, `in_order` keeps the axes in index order. `arrays` are the tensor's streams, the parameter first,
// all of one shape; null: no such stream.
Layout make_layout(const Array* const (&arrays)[kMaxStreams], bool in_order);

}  // namespace gradstep::step
