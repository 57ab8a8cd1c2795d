#pragma once

#include <cstdint>
#include <memory>

#include "step/backend.h"

namespace gradstep::step {

// Steps on the processor: in its instruction set and by its threads.
std::unique_ptr<Backend> on_cpu();

// About how many elements a task of a step with `elements` holds there.
std::int64_t grain_on_cpu(std::int64_t elements);

}  // namespace gradstep::step
