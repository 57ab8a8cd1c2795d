#pragma once

#include <cstddef>
#include <deque>
#include <vector>

#include "step/array.h"
#include "step/backend.h"

namespace gradstep::step {

// Gradients as their norm goes along them: in the order of their indices, whatever the order of the step.
struct Gradients {
  std::vector<Job> jobs;       // of each tensor; null streams but for the gradient
  std::deque<Layout> layouts;  // which jobs point to

  // From now on a tensor's gradient lies as this one.
  void lay_out(Backend& backend, std::size_t tensor, const Array& gradient);
};

// The norm of all elements of some arrays together, as Stepper has it of gradients; null data: there is none. It is
// waited for. Throws where the backend, which must be a new one, does.
double global_norm(Backend& backend, const std::vector<Array>& arrays);

}  // namespace gradstep::step
