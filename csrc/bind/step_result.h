#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>

#include "exec/norm.h"

// The result of a step as a Python object.
namespace gradstep::bind {

void register_step_result(pybind11::module_& m);

// `nonfinite` is the name of the tensor with the first gradient that is not finite, if there is one.
pybind11::object make_step_result(std::int64_t step, const std::optional<GradientPass>& pass,
                                  const std::string* nonfinite);

}  // namespace gradstep::bind
