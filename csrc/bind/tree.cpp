#include "bind/tree.h"

#include <pybind11/critical_section.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <unordered_set>
#include <utility>

#include "base/macros.h"
#include "bind/dict.h"
#include "bind/gc.h"
#include "bind/rows.h"
#include "step/stepper.h"

namespace gradstep::bind {
namespace {

using step::WrongType;

constexpr int kMaxDepth = 100;  // refuses nests that contain themselves

bool has(py::handle type, const char* attribute) { return PyObject_HasAttrString(type.ptr(), attribute) == 1; }

bool is_mapping(py::handle value) {
  if (PyDict_Check(value.ptr())) return true;
  return py::isinstance(value, py::module_::import("collections.abc").attr("Mapping"));
}

std::string type_name(py::handle value) { return Py_TYPE(value.ptr())->tp_name; }

std::string text(py::handle value) { return py::cast<std::string>(py::str(value)); }

// A string itself, whatever a subclass shows; empty for what is no string, or not one of UTF-8.
std::string name_of(py::handle key) {
  if (!PyUnicode_Check(key.ptr())) return "";
  py::ssize_t size = 0;
  const char* const name = PyUnicode_AsUTF8AndSize(key.ptr(), &size);
  if (name == nullptr) PyErr_Clear();
  return name == nullptr ? "" : std::string(name, static_cast<std::size_t>(size));
}

// Whether entries of a dict can be looked up as those of a plain one, without code of a subclass.
bool is_plain_dict(PyObject* value) {
  return PyDict_Check(value) && Py_TYPE(value)->tp_as_mapping->mp_subscript == PyDict_Type.tp_as_mapping->mp_subscript;
}

py::object fields_of(py::handle value) {
  py::list names;
  for (py::handle field : py::module_::import("dataclasses").attr("fields")(value)) names.append(field.attr("name"));
  return names;
}

bool is_same_key(PyObject* a, PyObject* b) {
  return a == b || (PyUnicode_CheckExact(a) && PyUnicode_CheckExact(b) && PyUnicode_Compare(a, b) == 0);
}

std::string count(std::size_t n) { return std::to_string(n) + (n == 1 ? " entry" : " entries"); }

}  // namespace

Tree::Tree(py::object root, std::string what) : root_(std::move(root)), what_(std::move(what)) {
  add(root_, 0, 0, {}, 0);
}

Tree::Kind Tree::kind_of(py::handle value) {
  PyObject* const object = value.ptr();
  const auto* const ndarray = py::detail::npy_api::get().PyArray_Type_;
  if (Py_TYPE(object) == ndarray) return Kind::kLeaf;
  if (value.is_none()) return Kind::kNone;
  if (PyList_Check(object) || PyTuple_Check(object)) return Kind::kSequence;
  if (PyDict_Check(object)) return Kind::kMapping;
  const py::handle type = py::type::handle_of(value);
  if (py::isinstance<py::array>(value) || has(type, "__dlpack__") || has(type, "__cuda_array_interface__")) {
    return Kind::kLeaf;
  }
  if (is_rows(value)) return Kind::kLeaf;
  if (is_mapping(value)) return Kind::kMapping;
  if (has(type, "__dataclass_fields__")) return Kind::kDataclass;
  throw WrongType(" must be an array, or a list, tuple, dict or dataclass of arrays, not " + type_name(value));
}

void Tree::add(py::handle value, std::size_t parent, std::size_t index, py::object key, int depth) {
  const std::size_t number = nodes_.size();
  nodes_.push_back({Kind::kNone, parent, index, 0, {}});
  keys_.push_back(std::move(key));
  Kind kind;
  try {
    kind = kind_of(value);
  } catch (const WrongType& error) {
    throw WrongType(label(what_, number) + error.what());
  }
  if (depth > kMaxDepth) throw std::invalid_argument(label(what_, number) + " is nested too deep");
  nodes_[number].kind = kind;
  if (kind != Kind::kLeaf) nodes_[parent].has_only_leaves = false;
  if (kind == Kind::kNone) return;
  if (kind == Kind::kLeaf) {
    nodes_[number].size = leaves_.size();
    leaves_.push_back(py::reinterpret_borrow<py::object>(value));
    leaf_nodes_.push_back(number);
    return;
  }
  nodes_[number].type = py::type::of(value);
  nodes_[number].has_only_leaves = true;
  std::size_t size = 0;
  const auto add_entry = [&](py::handle of, py::object name) { add(of, number, size++, std::move(name), depth + 1); };
  if (kind == Kind::kSequence) {
    const auto items = py::reinterpret_steal<py::tuple>(PySequence_Tuple(value.ptr()));
    const py::object fields = py::getattr(value, "_fields", py::none());  // of a named tuple
    for (std::size_t i = 0; i < items.size(); ++i) {
      add_entry(items[i], fields.is_none() ? py::object() : fields[py::int_(i)]);
    }
  } else if (kind == Kind::kMapping) {
    for (py::handle pair : py::list(value.attr("items")())) {
      if (!PyTuple_Check(pair.ptr()) || PyTuple_GET_SIZE(pair.ptr()) != 2) {
        throw WrongType(label(what_, number) + " must have items() that are pairs of a key and an entry");
      }
      const auto item = py::reinterpret_borrow<py::tuple>(pair);
      const py::object name = item[0];
      const std::string of = name_of(name);
      const bool plain = !of.empty() && of.find_first_of(".[") == std::string::npos;
      has_odd_keys_ = has_odd_keys_ || !plain;
      add_entry(item[1], name);
    }
  } else {
    for (py::handle name : fields_of(value)) add_entry(value.attr(name), py::reinterpret_borrow<py::object>(name));
  }
  nodes_[number].size = size;
}

std::vector<std::string> Tree::paths() const {
  std::vector<std::string> all(size());
  for (std::size_t i = 0; i < size(); ++i) all[i] = path(i);
  if (has_odd_keys_) check_apart(all);
  return all;
}

void Tree::check_apart(const std::vector<std::string>& paths) const {
  std::unordered_set<std::string> seen;
  for (const std::string& of : paths) {
    if (!seen.insert(of).second) throw std::invalid_argument(what_ + " has two arrays named " + of);
  }
}

std::string Tree::path_of(std::size_t number) const {
  std::string path;
  append_path(path, number);
  return path;
}

void Tree::append_path(std::string& path, std::size_t number) const {
  if (number == 0) return;
  const Node& node = nodes_[number];
  append_path(path, node.parent);
  const py::object& key = keys_[number];
  const std::string name = key ? name_of(key) : "";
  if (name.empty() || name[0] == '[') {
    path += '[';
    path += key ? text(py::repr(key)) : std::to_string(node.index);
    path += ']';
  } else {
    if (!path.empty()) path += '.';
    path += name;
  }
}

std::string Tree::as_suffix(std::string path) {
  if (!path.empty() && path[0] != '[') path.insert(path.begin(), '.');
  return path;
}

py::list Tree::keys(std::size_t leaf) const {
  py::list way;
  for (std::size_t node = leaf_nodes_.at(leaf); node != 0; node = nodes_[node].parent) {
    way.append(keys_[node] ? keys_[node] : py::object(py::int_(nodes_[node].index)));
  }
  way.attr("reverse")();
  return way;
}

std::vector<std::size_t> Tree::entry_sizes() const {
  std::vector<std::size_t> sizes(nodes_[0].kind == Kind::kLeaf ? 0 : nodes_[0].size);
  for (std::size_t node : leaf_nodes_) {
    if (node == 0) continue;
    while (nodes_[node].parent != 0) node = nodes_[node].parent;
    ++sizes[nodes_[node].index];
  }
  return sizes;
}

// Iterates over the entries of a container. If all are leaves, it does not read their nodes.
class Tree::Entries {
 public:
  Entries(const Tree& tree, std::size_t container)
      : tree_(tree), next_(container + 1), leaves_(tree.nodes_[container].has_only_leaves) {
    if (leaves_ && tree.nodes_[container].size > 0) leaf_ = tree.nodes_[next_].size;
  }

  PyObject* key() const { return tree_.keys_[next_].ptr(); }
  std::size_t next() const { return next_; }

  template <class Visit>
  GS_INLINE void walk(py::handle value, const std::string& what, const Visit& visit) {
    if (leaves_) {
      visit(leaf_++, value);
      ++next_;
    } else {
      next_ = tree_.walk(next_, value, what, visit);
    }
  }

 private:
  const Tree& tree_;
  std::size_t next_, leaf_ = 0;
  bool leaves_;
};

// Holds a reference to a container during the walk over its entries, because user code that runs there may drop it. In
// a Python without the GIL another thread may change the container; it is locked, so that an entry lives until it is
// visited or a reference to it is held.
template <class Visit>
std::size_t Tree::walk(std::size_t number, py::handle value, const std::string& what, const Visit& visit) const {
  const Node& node = nodes_[number];
  switch (node.kind) {
    case Kind::kLeaf:
      visit(node.size, value);
      return number + 1;
    case Kind::kNone:
      if (!value.is_none()) refuse(number, py::reinterpret_borrow<py::object>(value), what);
      return number + 1;
    case Kind::kSequence:
      return walk_list(number, py::reinterpret_borrow<py::object>(value), what, visit);
    case Kind::kMapping:
      return walk_dict(number, py::reinterpret_borrow<py::object>(value), what, visit);
    case Kind::kDataclass:
      return walk_fields(number, py::reinterpret_borrow<py::object>(value), what, visit);
  }
  return number + 1;
}

template <class Visit>
std::size_t Tree::walk_list(std::size_t number, py::handle value, const std::string& what, const Visit& visit) const {
  PyObject* const list = value.ptr();
  if (!PyList_Check(list) && !PyTuple_Check(list)) refuse(number, value, what);
  const py::scoped_critical_section locked(value);
  Entries entries(*this, number);
  const std::size_t size = nodes_[number].size;
  for (std::size_t i = 0; i < size; ++i) {
    if (static_cast<std::size_t>(PySequence_Fast_GET_SIZE(list)) != size) refuse(number, value, what);
    entries.walk(PySequence_Fast_GET_ITEM(list, static_cast<py::ssize_t>(i)), what, visit);
  }
  if (static_cast<std::size_t>(PySequence_Fast_GET_SIZE(list)) != size) refuse(number, value, what);
  return entries.next();
}

template <class Visit>
std::size_t Tree::walk_dict(std::size_t number, py::handle value, const std::string& what, const Visit& visit) const {
  PyObject* const dict = value.ptr();
  const bool is_dict = is_plain_dict(dict);
  if (!is_dict && !is_mapping(value)) refuse(number, value, what);
  const std::size_t size = nodes_[number].size;
  const py::scoped_critical_section locked(value);
  const py::ssize_t given_size = is_dict ? PyDict_GET_SIZE(dict) : PyObject_Size(dict);
  if (given_size < 0) throw py::error_already_set();
  if (static_cast<std::size_t>(given_size) != size) refuse(number, value, what);
  // Most dicts have the keys in the same order.
  py::ssize_t place = 0;
  bool in_order = is_dict;
  Entries entries(*this, number);
  for (std::size_t i = 0; i < size; ++i) {
    PyObject* const key = entries.key();
    PyObject *given = nullptr, *entry = nullptr;
    in_order = in_order && PyDict_Next(dict, &place, &given, &entry) && is_same_key(given, key);
    if (in_order) {
      entries.walk(entry, what, visit);
    } else if (is_dict) {
      const py::object found = entry_of(dict, key);
      if (!found) refuse_missing(PyExc_KeyError, number, value, what);
      entries.walk(found, what, visit);
    } else {
      const int has_key = PySequence_Contains(dict, key);  // before a lookup, which may make the entry
      if (has_key <= 0) refuse_missing(PyExc_KeyError, number, value, what);
      const auto item = py::reinterpret_steal<py::object>(PyObject_GetItem(dict, key));
      if (!item) refuse_missing(PyExc_KeyError, number, value, what);
      entries.walk(item, what, visit);
    }
  }
  return entries.next();
}

template <class Visit>
std::size_t Tree::walk_fields(std::size_t number, py::handle value, const std::string& what, const Visit& visit) const {
  const py::handle type = py::type::handle_of(value);
  if (!type.is(nodes_[number].type) && !has(type, "__dataclass_fields__")) refuse(number, value, what);
  Entries entries(*this, number);
  for (std::size_t i = 0; i < nodes_[number].size; ++i) {
    const auto entry = py::reinterpret_steal<py::object>(PyObject_GetAttr(value.ptr(), entries.key()));
    if (!entry) refuse_missing(PyExc_AttributeError, number, value, what);
    entries.walk(entry, what, visit);
  }
  return entries.next();
}

// Called after a failed lookup.
void Tree::refuse_missing(PyObject* expected, std::size_t number, py::handle value, const std::string& what) const {
  if (PyErr_Occurred() != nullptr) {
    if (!PyErr_ExceptionMatches(expected)) throw py::error_already_set();
    PyErr_Clear();
  }
  refuse(number, value, what);
}

// Throws an error that describes how a value differs from the tree.
void Tree::refuse(std::size_t number, py::handle value, const std::string& what) const {
  const Node& node = nodes_[number];
  const std::string here = label(what, number), there = label(what_, number);
  const bool again = &what == &what_;  // the nest itself has changed
  if (node.kind == Kind::kNone) throw WrongType(here + " must be None, as " + there + " is");
  const bool is_list = PyList_Check(value.ptr()) || PyTuple_Check(value.ptr());
  const bool fits = node.kind == Kind::kSequence ? is_list : node.kind == Kind::kMapping && is_mapping(value);
  if (!fits) {
    const char* const kinds[] = {"", "", "a list or tuple", "a dict"};
    const std::string wanted = node.kind == Kind::kDataclass
                                   ? "a dataclass with the fields of " + text(node.type.attr("__name__"))
                                   : kinds[static_cast<int>(node.kind)];
    throw WrongType(here + " must be " + wanted + ", as " + there + " is, not " + type_name(value));
  }
  const std::string than = again ? " when the optimizer was made" : ", but " + there + " has ";
  if (node.kind == Kind::kSequence) {
    const auto size = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(value.ptr()));
    throw std::invalid_argument(
        here + " has " + count(size) +
        (again ? ", and had " + std::to_string(node.size) + than : than + std::to_string(node.size)));
  }
  std::size_t next = number + 1;
  const py::object theirs = py::reinterpret_steal<py::object>(PySet_New(value.ptr()));
  if (!theirs) throw py::error_already_set();
  for (std::size_t i = next; i < nodes_.size(); ++i) {
    if (nodes_[i].parent != number || i == 0) continue;
    const int known = PySet_Contains(theirs.ptr(), keys_[i].ptr());
    if (known < 0) throw py::error_already_set();
    if (known == 0) throw std::invalid_argument(here + " lacks " + text(py::repr(keys_[i])));
    PySet_Discard(theirs.ptr(), keys_[i].ptr());
  }
  for (py::handle extra : theirs) {
    throw std::invalid_argument(here + " has " + text(py::repr(extra)) +
                                (again ? ", which it had not" + than : ", which " + there + " has not"));
  }
  throw std::runtime_error(here + " was changed while it was read");
}

py::tuple Tree::flatten(py::handle values, const std::string& what) const {
  py::tuple leaves(size());
  walk(0, values, what, [&](std::size_t leaf, py::handle value) {
    PyTuple_SET_ITEM(leaves.ptr(), static_cast<py::ssize_t>(leaf), value.inc_ref().ptr());
  });
  return leaves;
}

void Tree::check_unchanged() const {
  walk(0, root_, what_, [&](std::size_t leaf, py::handle value) {
    if (value.is(leaves_[leaf])) return;
    const std::string name = label(what_, leaf_nodes_[leaf]);
    throw std::invalid_argument(
        name + " is another array than the one that the optimizer steps: change arrays in place, as in " + name +
        "[...] = values, or call rebind() to step the new one");
  });
}

py::object Tree::build(const py::sequence& leaves) const {
  std::size_t node = 0;
  return build_from(node, leaves);
}

py::object Tree::build_from(std::size_t& number, const py::sequence& leaves) const {
  const Node& node = nodes_[number++];
  if (node.kind == Kind::kNone) return py::none();
  if (node.kind == Kind::kLeaf) return leaves[node.size];
  py::list entries;
  py::dict named;
  for (std::size_t i = 0; i < node.size; ++i) {
    const py::object key = keys_[number];
    py::object entry = build_from(number, leaves);
    if (node.kind == Kind::kSequence) {
      entries.append(entry);
    } else {
      named[key] = entry;
    }
  }
  if (node.kind == Kind::kMapping) return named;
  if (node.kind == Kind::kDataclass) {  // without __init__, which may reject these leaves
    const py::object made = node.type.attr("__new__")(node.type);
    const py::object set = py::module_::import("builtins").attr("object").attr("__setattr__");
    for (const auto& [key, entry] : named) set(made, key, entry);
    return made;
  }
  if (has(node.type, "_fields")) return node.type.attr("_make")(entries);  // without __new__, as above
  const bool is_tuple = PyType_IsSubtype(reinterpret_cast<PyTypeObject*>(node.type.ptr()), &PyTuple_Type) != 0;
  return is_tuple ? py::object(py::tuple(entries)) : py::object(entries);
}

void register_tree(py::module_& m) {
  py::class_<Tree>(m, "Tree", py::module_local(), py::is_final(), collect_garbage<Tree>())
      .def(py::init<py::object, std::string>(), py::arg("root"), py::arg("what") = "params")
      .def_property_readonly("leaves",
                             [](const Tree& tree) {
                               py::list all(tree.size());
                               for (std::size_t i = 0; i < tree.size(); ++i) all[i] = tree.leaves()[i];
                               return all;
                             })
      .def_property_readonly("paths", &Tree::paths)
      .def("keys", &Tree::keys, py::arg("leaf"))
      .def_property_readonly("entry_sizes", &Tree::entry_sizes)
      .def("flatten", &Tree::flatten, py::arg("values"), py::arg("what"))
      .def("check_unchanged", &Tree::check_unchanged)
      .def("build", &Tree::build, py::arg("leaves"));
}

}  // namespace gradstep::bind
