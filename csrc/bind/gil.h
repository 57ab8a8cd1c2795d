#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <exception>
#include <thread>

namespace gradstep::bind {

// Runs f without the GIL. If the interpreter has ended meanwhile, taking the GIL unwinds this (daemon) thread, which is
// not safe with C++ frames; instead it sleeps until the process ends, as Python does from version 3.14 on.
template <class F>
void without_gil(F f) {
  PyThreadState* const state = PyEval_SaveThread();
  std::exception_ptr error;
  try {
    f();
  } catch (...) {
    error = std::current_exception();
  }
  try {
    PyEval_RestoreThread(state);
  } catch (...) {
    for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace gradstep::bind
