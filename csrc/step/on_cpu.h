#pragma once

#include <memory>

#include "step/backend.h"

namespace gradstep::step {

// Steps on the processor: in its instruction set and by its threads.
std::unique_ptr<Backend> on_cpu();

}  // namespace gradstep::step
