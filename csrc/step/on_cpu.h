#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "step/array.h"
#include "step/backend.h"

namespace gradstep::step {

// Steps on the processor: in its instruction set and by its threads.
std::unique_ptr<Backend> on_cpu();

// One addition to a parameter and each of its states, along a gradient: the least that a step with these streams can
// cost, with its tasks and its threads. Benchmarks measure rules by it. The arrays, parameter, gradient, states, are
// packed and of one size and dtype.
void run_additions(const std::vector<Array>& streams, std::int64_t size);

}  // namespace gradstep::step
