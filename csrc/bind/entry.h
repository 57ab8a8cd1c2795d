#pragma once

#include <pybind11/pybind11.h>

namespace gradstep::bind {

// Whether this is the main interpreter; if not, an ImportError is set.
inline bool in_main_interpreter() {
  if (PyInterpreterState_Get() == PyInterpreterState_Main()) return true;
  PyErr_SetString(PyExc_ImportError,
                  "gradstep cannot be imported in a sub-interpreter, which NumPy does not support either; "
                  "use threads or processes");
  return false;
}

}  // namespace gradstep::bind

// PYBIND11_MODULE for the main interpreter alone. A sub-interpreter is refused before pybind11 runs in it: before
// Python 3.12 pybind11 calls PyGILState_Ensure(), which would wait for the GIL that its own thread holds.
#define GRADSTEP_MODULE(name, variable)                                              \
  extern "C" PYBIND11_EXPORT PyObject* PyInit_##name##_main();                       \
  extern "C" PYBIND11_EXPORT PyObject* PyInit_##name();                              \
  extern "C" PYBIND11_EXPORT PyObject* PyInit_##name() {                             \
    return gradstep::bind::in_main_interpreter() ? PyInit_##name##_main() : nullptr; \
  }                                                                                  \
  PYBIND11_MODULE(name##_main, variable, pybind11::mod_gil_not_used())
