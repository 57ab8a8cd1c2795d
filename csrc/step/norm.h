#pragma once

#include <vector>

#include "step/array.h"
#include "step/backend.h"

namespace gradstep::step {

// How the norm goes along the gradient of a tensor that is computed in `compute`: in the order of its indices, whatever
// the order of the step.
Layout norm_layout(const Array& gradient, Compute compute);

// The norm of all elements of some arrays together, as a step has it of gradients that go with parameters of their own
// types; null data: there is none. It is waited for. Throws where the backend, which must be a new one, does.
double global_norm(Backend& backend, const std::vector<Array>& arrays);

}  // namespace gradstep::step
