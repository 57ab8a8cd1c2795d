#pragma once

#include <pybind11/pybind11.h>

// Each registers the part of the module that one file of this folder defines.
namespace gradstep::bind {

void register_config(pybind11::module_& m);
void register_rules(pybind11::module_& m);
void register_cpu(pybind11::module_& m);

}  // namespace gradstep::bind
