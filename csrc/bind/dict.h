#pragma once

#include <pybind11/pybind11.h>

namespace gradstep::bind {

// The value of a key; null where there is none, or where an error is set. A reference is held at once, because in a
// Python without the GIL another thread may remove the entry.
inline pybind11::object entry_of(PyObject* dict, PyObject* key) {
#if PY_VERSION_HEX >= 0x030D0000
  PyObject* found = nullptr;
  PyDict_GetItemRef(dict, key, &found);
  return pybind11::reinterpret_steal<pybind11::object>(found);
#else
  return pybind11::reinterpret_borrow<pybind11::object>(PyDict_GetItemWithError(dict, key));
#endif
}

}  // namespace gradstep::bind
