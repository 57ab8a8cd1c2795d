#include "bind/bind.h"

namespace py = pybind11;

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "The compiled core of gradstep: rules, kernels, threads.";
  gradstep::bind::register_config(m);
  gradstep::bind::register_rules(m);
  gradstep::bind::register_numpy(m);
}
