#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <string>
#include <vector>

namespace gradstep::bind {

namespace py = pybind11;

// A nest of lists, tuples, named tuples, dicts, other mappings and dataclasses whose leaves are arrays. None in place
// of a leaf is allowed; it is no leaf.
class Tree {
 public:
  // Throws TypeError or ValueError for other objects. `what` is the nest's name in messages.
  Tree(py::object root, std::string what);

  std::size_t size() const { return leaves_.size(); }
  const std::vector<py::object>& leaves() const { return leaves_; }
  // The path of a leaf, such as "layer1.w" or "[0].b"; suffix() is what follows the nest's name in messages:
  // ".layer1.w".
  std::string path(std::size_t leaf) const { return path_of(leaf_nodes_[leaf]); }
  // The paths of all leaves. Throws ValueError where two are equal.
  std::vector<std::string> paths() const;
  std::string suffix(std::size_t leaf) const { return as_suffix(path(leaf)); }
  // The keys, indices and field names from the root to a leaf.
  py::list keys(std::size_t leaf) const;
  const std::string& what() const { return what_; }
  // The number of leaves under each entry of the root.
  std::vector<std::size_t> entry_sizes() const;

  // The leaves of a nest of the same structure, in the order of this tree's leaves. Keys of a dict may be in another
  // order, and a list may stand for a tuple. Throws TypeError or ValueError with the path of what differs.
  py::tuple flatten(py::handle values, const std::string& what) const;
  // Throws ValueError if the nest now holds other arrays than when the tree was made.
  void check_unchanged() const;
  // A new nest of the same structure with other leaves.
  py::object build(const py::sequence& leaves) const;

  // For the garbage collector.
  int traverse(visitproc visit, void* arg) const {
    Py_VISIT(root_.ptr());
    for (const py::object& leaf : leaves_) Py_VISIT(leaf.ptr());
    for (const py::object& key : keys_) Py_VISIT(key.ptr());
    for (const Node& node : nodes_) Py_VISIT(node.type.ptr());
    return 0;
  }
  // Makes this the tree of None.
  void clear() { *this = Tree(py::none(), what_); }

 private:
  enum class Kind : unsigned char { kLeaf, kNone, kSequence, kMapping, kDataclass };

  class Entries;

  // Nodes are in depth-first order: a container, then its entries, each followed by its descendants.
  struct Node {
    Kind kind = Kind::kNone;
    std::size_t parent = 0;
    std::size_t index = 0;  // in the parent
    std::size_t size = 0;   // of a container: its entries; of a leaf: its number
    py::object type;        // of a container
    bool has_only_leaves = true;
  };

  static std::string as_suffix(std::string path);
  std::string path_of(std::size_t node) const;
  void append_path(std::string& path, std::size_t node) const;
  std::string label(const std::string& what, std::size_t node) const { return what + as_suffix(path_of(node)); }

  static Kind kind_of(py::handle value);
  void add(py::handle value, std::size_t parent, std::size_t index, py::object key, int depth);
  void check_apart(const std::vector<std::string>& paths) const;

  // Calls visit(leaf, value) for the leaves of a node; returns the next node that is not below it.
  template <class Visit>
  std::size_t walk(std::size_t node, py::handle value, const std::string& what, const Visit& visit) const;
  template <class Visit>
  std::size_t walk_list(std::size_t node, py::handle value, const std::string& what, const Visit& visit) const;
  template <class Visit>
  std::size_t walk_dict(std::size_t node, py::handle value, const std::string& what, const Visit& visit) const;
  template <class Visit>
  std::size_t walk_fields(std::size_t node, py::handle value, const std::string& what, const Visit& visit) const;
  py::object build_from(std::size_t& node, const py::sequence& leaves) const;
  [[noreturn]] void refuse_missing(PyObject* expected, std::size_t node, py::handle value,
                                   const std::string& what) const;
  [[noreturn]] void refuse(std::size_t node, py::handle value, const std::string& what) const;

  py::object root_;
  std::string what_;
  std::vector<Node> nodes_;
  std::vector<py::object> keys_;  // of the nodes in their parents, where the parents are mappings or dataclasses
  std::vector<py::object> leaves_;
  std::vector<std::size_t> leaf_nodes_;
  bool has_odd_keys_ = false;  // keys that may make two paths equal
};

void register_tree(py::module_& m);

}  // namespace gradstep::bind
