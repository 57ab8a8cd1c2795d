#pragma once

#include <pybind11/pybind11.h>

namespace gradstep::bind {

// Runs f without the GIL. The destructor may not return where the interpreter is ending; see forced_unwind.cpp.
template <class F>
void without_gil(F f) {
  struct Released {
    PyThreadState* const state = PyEval_SaveThread();
    ~Released() { PyEval_RestoreThread(state); }
  } const released;
  f();
}

}  // namespace gradstep::bind
