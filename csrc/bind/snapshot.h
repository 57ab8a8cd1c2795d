#pragma once

#include <pybind11/critical_section.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <utility>
#include <vector>

#include "bind/gc.h"

namespace gradstep::bind {

// The entries of dicts and lists at one time. They are compared by identity, at a few nanoseconds an entry.
class Snapshot {
 public:
  explicit Snapshot(const pybind11::list& containers) {
    for (const pybind11::handle of : containers) {
      if (!PyDict_Check(of.ptr()) && !PyList_Check(of.ptr())) {
        throw pybind11::type_error("a snapshot is of dicts and lists");
      }
      containers_.push_back({pybind11::reinterpret_borrow<pybind11::object>(of), entries_.size()});
      each_entry(of.ptr(), [this](PyObject* entry) {
        entries_.push_back(pybind11::reinterpret_borrow<pybind11::object>(entry));
        return true;
      });
    }
  }

  // Whether all have the entries that they had.
  bool holds() const {
    for (std::size_t i = 0; i < containers_.size(); ++i) {
      const std::size_t end = i + 1 < containers_.size() ? containers_[i + 1].first : entries_.size();
      std::size_t next = containers_[i].first;
      const bool same = each_entry(containers_[i].object.ptr(),
                                   [&](PyObject* entry) { return next < end && entries_[next++].ptr() == entry; });
      if (!same || next != end) return false;
    }
    return true;
  }

  int traverse(visitproc visit, void* arg) const {
    for (const Container& of : containers_) Py_VISIT(of.object.ptr());
    for (const pybind11::object& entry : entries_) Py_VISIT(entry.ptr());
    return 0;
  }
  void clear() {
    const auto containers = std::exchange(containers_, {});
    const auto entries = std::exchange(entries_, {});
  }

 private:
  struct Container {
    pybind11::object object;
    std::size_t first;  // of its entries
  };

  // Calls visit(entry) for the keys and values of a dict, or the items of a list, until it returns false. Returns
  // whether it never did.
  template <class Visit>
  static bool each_entry(PyObject* of, const Visit& visit) {
    const pybind11::scoped_critical_section locked(of);  // without the GIL, other threads may change it
    if (PyList_Check(of)) {
      for (Py_ssize_t i = 0; i < PyList_GET_SIZE(of); ++i) {
        if (!visit(PyList_GET_ITEM(of, i))) return false;
      }
      return true;
    }
    PyObject *key, *value;
    for (Py_ssize_t place = 0; PyDict_Next(of, &place, &key, &value) != 0;) {
      if (!visit(key) || !visit(value)) return false;
    }
    return true;
  }

  std::vector<Container> containers_;
  std::vector<pybind11::object> entries_;
};

inline void register_snapshot(pybind11::module_& m) {
  pybind11::class_<Snapshot>(m, "Snapshot", pybind11::is_final(), collect_garbage<Snapshot>())
      .def(pybind11::init<const pybind11::list&>(), pybind11::arg("containers"))
      .def("holds", &Snapshot::holds);
}

}  // namespace gradstep::bind
