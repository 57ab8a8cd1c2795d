#pragma once

#include <vector>

#include "step/array.h"
#include "step/backend.h"

namespace gradstep::step {

// The norm of all elements of some arrays together, as Stepper has it of gradients; null data: there is none. It is
// waited for. Throws where the backend, which must be a new one, does.
double global_norm(Backend& backend, const std::vector<Array>& arrays);

}  // namespace gradstep::step
