#pragma once

#include <pybind11/pybind11.h>

namespace gradstep::bind {

// The class gradstep.Rows; null while its module is not imported. Looks up dictionaries, because no Python code may run
// within a step.
inline PyObject* rows_type() {
  PyObject* const module = PyDict_GetItemString(PyImport_GetModuleDict(), "gradstep._rows");
  return module != nullptr && PyModule_Check(module) ? PyDict_GetItemString(PyModule_GetDict(module), "Rows") : nullptr;
}

inline bool is_rows(pybind11::handle object) {
  return reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())) == rows_type();
}

// The arrays of a gradstep.Rows, which is final and immutable: its attributes are slots.
struct RowArrays {
  pybind11::object indices, values;

  explicit RowArrays(pybind11::handle rows) : indices(rows.attr("indices")), values(rows.attr("values")) {}
};

}  // namespace gradstep::bind
