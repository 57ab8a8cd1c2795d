#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "exec/norm.h"

// The result of a step as a Python object.
namespace gradstep::bind {

void register_step_result(pybind11::module_& m);

// The name of a tensor.
using NameOf = std::function<std::string(std::size_t tensor)>;

// From the number of steps, the gradient pass if there was one, and the norms of each tensor if they were measured.
pybind11::object make_step_result(std::int64_t step, const std::optional<GradientPass>& pass,
                                  const std::vector<TensorNorms>& measured, const NameOf& name_of);

}  // namespace gradstep::bind
