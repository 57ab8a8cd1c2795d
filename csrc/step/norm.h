#pragma once

#include <vector>

#include "step/array.h"
#include "step/backend.h"

namespace gradstep::step {

// The layout that the norm uses: in index order, whatever the order of the step.
Layout norm_layout(const Array& gradient);

// The norm of all elements of several arrays, computed like that of a step's gradients; null data: no array.
// Synchronizes. `backend` must be new. Throws if the backend does.
double global_norm(Backend& backend, const std::vector<Array>& arrays);

}  // namespace gradstep::step
