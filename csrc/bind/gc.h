#pragma once

#include <pybind11/pybind11.h>

#include <new>

namespace gradstep::bind {

// Pauses the garbage collector while many objects are made that it cannot free: it would visit all of them again and
// again. The GIL is held meanwhile.
class PausedCollector {
 public:
  PausedCollector() : was_enabled_(PyGC_Disable() != 0) {}
  ~PausedCollector() {
    if (was_enabled_) PyGC_Enable();
  }
  PausedCollector(const PausedCollector&) = delete;
  PausedCollector& operator=(const PausedCollector&) = delete;

 private:
  bool was_enabled_;
};

// Makes the instances of a bound class, which must be final, visible to Python's garbage collector, which then frees
// cycles through them. T has traverse(visit, arg), which visits the Python objects that it owns and that may be part of
// a cycle, and clear(), which drops them or throws std::bad_alloc before it drops any. Every method of T must be safe
// to call afterwards.
template <class T>
pybind11::custom_type_setup collect_garbage() {
  return pybind11::custom_type_setup([](PyHeapTypeObject* heap_type) {
    // Null until __init__ has returned. In a Python without the GIL the collector has stopped all threads, so that no
    // lock may be taken here, as a cast of pybind11 does.
    static constexpr auto instance = [](PyObject* self) -> T* {
      if (!pybind11::detail::is_holder_constructed(self)) return nullptr;
      return reinterpret_cast<pybind11::detail::instance*>(self)->get_value_and_holder().value_ptr<T>();
    };
    PyTypeObject& type = heap_type->ht_type;
    type.tp_flags |= Py_TPFLAGS_HAVE_GC;
    type.tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
      Py_VISIT(Py_TYPE(self));
      const T* const found = instance(self);
      return found == nullptr ? 0 : found->traverse(visit, arg);
    };
    type.tp_clear = [](PyObject* self) {
      try {
        if (T* const found = instance(self)) found->clear();
      } catch (const std::bad_alloc&) {  // nothing was cleared: the cycle leaks
      }
      return 0;
    };
  });
}

}  // namespace gradstep::bind
