#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <new>

#include "bind/gc.h"
#include "bind/stepper.h"

namespace gradstep::bind {

// A lock that its thread may acquire again, as threading.RLock is. Its methods are called with the GIL.
class Lock {
 public:
  Lock() { renew(); }
  ~Lock() { PyThread_free_lock(lock_); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

  // In the child of a fork: the thread that held the lock does not exist there. The old one may be locked for ever, and
  // is not freed.
  void renew() {
    lock_ = PyThread_allocate_lock();
    if (lock_ == nullptr) throw std::bad_alloc();
    owner_ = 0;
  }

  // Returns whether the lock was free; false also where this thread has it.
  bool acquire_free() {
    if (PyThread_acquire_lock(lock_, NOWAIT_LOCK) != PY_LOCK_ACQUIRED) return false;
    owner_.store(PyThread_get_thread_ident(), std::memory_order_relaxed);
    return true;
  }

  // Waits. A signal handler that raises ends the wait.
  void acquire() {
    if (owner_.load(std::memory_order_relaxed) == PyThread_get_thread_ident()) {
      ++again_;
      return;
    }
    if (acquire_free()) return;
    constexpr PY_TIMEOUT_T kMicroseconds = 100000;  // a signal that comes right before a wait does not end it
    for (PyLockStatus status = PY_LOCK_INTR; status != PY_LOCK_ACQUIRED;) {
      without_gil([&] { status = PyThread_acquire_lock_timed(lock_, kMicroseconds, 1); });
      if (status != PY_LOCK_ACQUIRED && PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
    }
    owner_.store(PyThread_get_thread_ident(), std::memory_order_relaxed);
  }

  void release() {
    if (again_ > 0) {
      --again_;
      return;
    }
    owner_.store(0, std::memory_order_relaxed);
    PyThread_release_lock(lock_);
  }

 private:
  PyThread_type_lock lock_ = nullptr;
  std::atomic<unsigned long> owner_{0};  // the thread that has it; 0: none
  int again_ = 0;                        // how many times more than once the owner has acquired it
};

// The lock of an optimizer, under which it steps and changes, and steps that need nothing but the core: these are taken
// in one call, because acquiring a lock of Python's, and testing what else is to be done, takes as long as a small
// step.
template <class Arrays>
class Gate {
 public:
  void enter() { lock_.acquire(); }
  void leave(const pybind11::args&) { lock_.release(); }
  void renew() { lock_.renew(); }

  // The stepper whose steps need nothing else; None: there is none.
  void open(const pybind11::object& stepper) {
    object_ = stepper;
    stepper_ = stepper.is_none() ? nullptr : stepper.cast<Stepper<Arrays>*>();
  }

  // Takes a step, or returns None, with nothing changed, where one must be taken by Stepper::step under the lock.
  pybind11::object step(const pybind11::object& grads) {
    if (!lock_.acquire_free()) return pybind11::none();
    struct Release {
      Lock& lock;
      ~Release() { lock.release(); }
    } const release{lock_};
    if (stepper_ == nullptr) return pybind11::none();
    pybind11::object result = stepper_->step(grads, 1, false, false);
    const bool held_back = PyTuple_Check(result.ptr());
    return held_back ? pybind11::none() : std::move(result);
  }

  int traverse(visitproc visit, void* arg) const {
    Py_VISIT(object_.ptr());
    return 0;
  }
  void clear() {
    stepper_ = nullptr;
    object_ = pybind11::object();
  }

 private:
  Lock lock_;
  pybind11::object object_;
  Stepper<Arrays>* stepper_ = nullptr;  // in object_
};

template <class Arrays>
void register_gate(pybind11::module_& m) {
  using The = Gate<Arrays>;
  pybind11::class_<The>(m, "Gate", pybind11::is_final(), collect_garbage<The>())
      .def(pybind11::init<>())
      .def("__enter__", &The::enter)
      .def("__exit__", &The::leave)
      .def("renew", &The::renew)
      .def("open", &The::open, pybind11::arg("stepper"))
      .def("step", &The::step, pybind11::arg("grads"));
}

}  // namespace gradstep::bind
