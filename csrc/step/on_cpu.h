#pragma once

#include <memory>

#include "step/backend.h"

namespace gradstep::step {

// Runs steps on the processor, with the instruction set and the threads in use.
std::unique_ptr<Backend> on_cpu();

}  // namespace gradstep::step
