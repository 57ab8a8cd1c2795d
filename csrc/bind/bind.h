#pragma once

#include <pybind11/pybind11.h>

// What each file of this folder adds to the module.
namespace gradstep::bind {

void register_config(pybind11::module_& m);
void register_rules(pybind11::module_& m);
void register_numpy(pybind11::module_& m);

}  // namespace gradstep::bind
