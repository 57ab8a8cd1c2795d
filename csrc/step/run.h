#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/job.h"
#include "step/array.h"
#include "step/plan.h"

namespace gradstep::step {

// Elements that a task of a step with `elements` holds: few enough that threads end together, enough that claiming one
// costs nothing (20 ns, where 4096 elements take 1 us and more), and that few begin with memory that nobody asked for
// ahead.
constexpr std::int64_t grain(std::int64_t elements) { return std::clamp<std::int64_t>(elements / 256, 4096, 65536); }

// Runs the jobs of a plan's tensors, those without an update left out; `elements` are those of the others.
void run_jobs(const Plan& plan, const cpu::Job* jobs, std::int64_t elements) noexcept;

// One addition to a parameter and each of its states, along a gradient: the least that a step with these streams can
// cost, with its tasks and its threads. Benchmarks measure rules by it. The arrays, parameter, gradient, states, are
// packed and of one size and dtype.
void run_additions(const std::vector<Array>& streams, std::int64_t size);

}  // namespace gradstep::step
