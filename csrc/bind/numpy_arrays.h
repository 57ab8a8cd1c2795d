#pragma once

#include <pybind11/numpy.h>

#include <memory>
#include <string>
#include <utility>

#include "bind/arrays.h"
#include "step/backend.h"

namespace gradstep::bind {

// NumPy's arrays: how the core sees them, and what runs steps on them.
class NumPyArrays {
 public:
  // Looks up NumPy's types and descriptors, when the module is imported: a step may run no Python, and the guard of a
  // static, held by a thread that waits for the GIL or is gone after fork(), would stop all others.
  static void initialize();

  // Throws where an array's class defines one of NumPy's hooks for subclasses, as those with units or masks do: no step
  // calls them.
  static void check_array_class(pybind11::handle object, const std::string& kind, const std::string& name);

  static std::unique_ptr<step::Backend> backend();

  // An array as the core sees it. Its name, made up only for an error, is `kind` and then `name`. Codes are known for
  // what they are only where they may stand.
  static Array view(pybind11::handle object, const std::string& kind, const std::string& name, bool codes = false);
  static Array writable_view(pybind11::handle object, const std::string& kind, const std::string& name,
                             bool codes = false);

  // What NumPy's exact test of overlap takes.
  static pybind11::object to_compare(const pybind11::object& object, const Array&) { return object; }

  static constexpr bool kOnDevice = false;

  // Every step looks at all.
  static constexpr int kSpotChecks = 0;

  // For the garbage collector; it keeps no object.
  static int traverse(visitproc, void*) { return 0; }

  // An array as it was when the optimizer was made; every step looks whether it still is.
  class Watched {
   public:
    Watched(const pybind11::object& the_object, const Array& the_array, std::string the_name, Role role);

    pybind11::object object;
    step::KeptArray array;
    std::string name;

    // An ndarray has references of its own where it is of a subclass.
    int traverse(visitproc visit, void* arg) const {
      Py_VISIT(object.ptr());
      return 0;
    }

    void check_unmoved() const {
      const auto& now = *pybind11::detail::array_proxy(object.ptr());
      const int rank = static_cast<int>(array.shape.size());
      bool same = reinterpret_cast<const std::byte*>(now.data) == array.data && now.nd == rank;
      if (role_ == Role::kState) {
        // Its header tells, as far as a user of `opt.state` goes. NumPy keeps shapes beside the data, in cache lines
        // that workers write: to look at those of all states would cost more than the rest of a small tensor's step.
        same = same && now.dimensions == shape_at_ && now.strides == strides_at_;
      } else {
        same = same && step::same(array.shape.data(), now.dimensions, rank) &&
               step::same(array.strides.data(), now.strides, rank);
      }
      if (!same) throw std::invalid_argument(name + " was moved or reshaped after the optimizer was made");
      // Another descriptor, or a flag withdrawn: look closer.
      const bool written = role_ != Role::kGradient;
      const bool locked = written && (now.flags & pybind11::detail::npy_api::NPY_ARRAY_WRITEABLE_) == 0;
      if (now.descr == descriptor_.ptr() && !locked) return;
      const bool codes = has_scales(array.dtype);
      if ((written ? writable_view(object, name, "", codes) : view(object, name, "")).dtype != array.dtype) {
        throw WrongType(name + " was given another dtype after the optimizer was made");
      }
    }

   private:
    pybind11::weakref unresizable_;  // NumPy resizes no array in place that has one
    pybind11::object descriptor_;
    const pybind11::ssize_t *shape_at_, *strides_at_;
    Role role_;
  };
};

}  // namespace gradstep::bind
