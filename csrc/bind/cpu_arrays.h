#pragma once

#include <pybind11/numpy.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bind/arrays.h"
#include "bind/dlpack.h"
#include "step/backend.h"

namespace gradstep::bind {

// Arrays in the processor's memory: NumPy's, and tensors, which have DLPack's C interface (torch's). Their views for
// the core, and their backend.
class CpuArrays {
 public:
  // Looks up NumPy's types and descriptors when the module is imported. A step may not run Python code, and a static
  // initialized later could deadlock: its guard may be held by a thread that waits for the GIL, or that is gone after
  // fork().
  static void initialize();

  // Accepts the tensors of a type, not of types derived from it. `is_negative(tensor)` returns whether the values in
  // memory have the opposite sign; `increment_version(tensors)` is called with the parameters that a step has written.
  // Both must be functions in C, because no Python code may run in a step.
  static void add_tensor_type(const pybind11::type& type, const pybind11::object& is_negative,
                              const pybind11::object& increment_version);

  // Throws where an array's class defines one of NumPy's hooks for subclasses, as classes with units or masks do,
  // because steps do not call them.
  static void check_array_class(pybind11::handle object, const std::string& kind, const std::string& name);

  static std::unique_ptr<step::Backend> backend();

  // The view of an array for the core. Its name in errors is `kind` followed by `name`. int8 and uint8 are q8 codes
  // where `codes` is true, and unsupported otherwise.
  // Shape and strides are valid until the next call.
  Array view(pybind11::handle object, const std::string& kind, const std::string& name, bool codes = false);
  Array writable_view(pybind11::handle object, const std::string& kind, const std::string& name, bool codes = false);

  // The view of the indices of a row gradient.
  step::IndexArray indices(pybind11::handle object, const std::string& name);

  // The view of an ndarray of this type, or of a tensor; false for anything else, including other arrays.
  bool view_like(pybind11::handle object, DType dtype, Array& array) {
    if (Py_TYPE(object.ptr()) != ndarray_) return view_tensor(object, false, array);
    const auto& fields = *pybind11::detail::array_proxy(object.ptr());
    if (fields.descr != descriptors[static_cast<int>(dtype)]) return false;
    array.data = reinterpret_cast<std::byte*>(fields.data);
    array.dtype = dtype;
    array.rank = fields.nd;
    array.shape = reinterpret_cast<const std::int64_t*>(fields.dimensions);
    array.strides = reinterpret_cast<const std::int64_t*>(fields.strides);
    return true;
  }

  // NumPy's descriptor of each type in native byte order. Those of ml_dtypes, which need not be installed, are null
  // until an array has them, in any thread.
  inline static std::atomic<PyObject*> descriptors[kDTypeCount] = {};

  // New arrays of zeros of a type, which is NumPy's descriptor, with the shapes and memory orders of others, without
  // gaps. They are in one allocation, and their objects are made when they are asked for: to make two objects for each
  // of a million small parameters took a third of the time of the optimizer's constructor.
  class Zeros {
   public:
    Zeros(const pybind11::list& arrays, const pybind11::dtype& dtype);

    std::size_t size() const { return places_.size(); }
    // The view of an array; valid as long as this is.
    Array view(std::size_t i) const {
      const auto& [data, axes, rank] = places_[i];
      return {data, dtype_, rank, axes_.data() + axes, axes_.data() + axes + rank};
    }
    // A new object for an array.
    pybind11::object make(std::size_t i) const;

   private:
    struct Place {
      std::byte* data;
      std::size_t axes;  // where its shape and then its strides begin
      int rank;
    };

    pybind11::object memory_;
    pybind11::dtype descriptor_;
    DType dtype_;
    std::vector<Place> places_;
    std::vector<std::int64_t> axes_;
  };
  static const Zeros* as_zeros(pybind11::handle object) {
    return pybind11::isinstance<Zeros>(object) ? object.cast<const Zeros*>() : nullptr;
  }

  // The index of the first array whose extent intersects that of one of the others, or -1. NumPy arrays of any type.
  static std::int64_t first_overlap(const pybind11::list& arrays, const pybind11::list& others);

  // An array of float64 without axes that has the value of a number of Python's or NumPy's; null for anything else.
  static pybind11::object number_as_array(pybind11::handle object);

  // What NumPy's exact test of overlap takes.
  static pybind11::object to_compare(const pybind11::object& object, const Array& array) {
    return tensor_type(object) == nullptr ? object : dlpack::shadow(array);
  }

  // Whether an array is a tensor, which has a version.
  static bool is_tensor(pybind11::handle object) { return tensor_type(object) != nullptr; }

  // Tells a library that keeps versions of its tensors that a step has written these.
  struct Written {
    void add(pybind11::handle object);
    void publish();

   private:
    pybind11::list tensors_;
    const pybind11::object* increment_version_ = nullptr;
  };

  static constexpr bool kOnDevice = false;

  // Every step checks all arrays.
  static constexpr int kSpotChecks = 0;

  // For the garbage collector; there is no object to visit.
  static int traverse(visitproc, void*) { return 0; }

  // The part of an array's header that must not change after construction. Every step checks all of them, so that each
  // has at most one cache line.
  struct Seal {
    const dlpack::Exchange* tensor;  // its type's interface; null: a NumPy array
    const pybind11::detail::PyArray_Proxy* array;
    const char* data;
    const PyObject* descriptor;  // null for a tensor, as what follows, except for its axes and rank
    const pybind11::ssize_t *dimensions, *strides;
    // The contents of these. Null for states: the header suffices for what users can do with `opt.state`, and NumPy
    // stores shapes beside the data, in cache lines that workers write.
    const std::int64_t* axes;
    int rank, flags;  // of a tensor: the number of its type

    bool holds() const {
      if (tensor != nullptr) return is_unmoved();
      const auto& now = *array;
      // One branch for all, because nearly always all are the same.
      const bool same = (now.data == data) & (now.descr == descriptor) & (now.nd == rank) &
                        ((now.flags & flags) == flags) & (now.dimensions == dimensions) & (now.strides == strides);
      return same &&
             (axes == nullptr || (step::same(axes, dimensions, rank) && step::same(axes + rank, strides, rank)));
    }
    bool is_unmoved() const;
  };
  static_assert(sizeof(Seal) == 64);

  // An array that steps read or write.
  class Watched {
   public:
    Watched(const pybind11::object& the_object, const Array& array, const std::string* the_kind, std::size_t the_tensor,
            Role role);

    pybind11::object object;
    std::size_t tensor;
    const std::string* kind;  // its name in messages, before the tensor's name

    Array view() const { return array_.view(); }
    Seal seal() const;

    // An ndarray of a subclass has references of its own.
    int traverse(visitproc visit, void* arg) const {
      Py_VISIT(object.ptr());
      return 0;
    }
    // Throws where its header has changed, unless it has another descriptor of the same type.
    void check_closely(const std::string& name) const;

   private:
    Role role_;
    step::KeptArray array_;
    pybind11::object unresizable_;  // a weak reference: NumPy resizes no array in place that has one, and no view
    pybind11::object descriptor_;
  };

 private:
  // A type of tensors, and the one that was added before it.
  struct TensorType {
    PyTypeObject* type;
    const dlpack::Exchange* exchange;
    pybind11::object is_negative, increment_version;
    const TensorType* next;
  };

  static const TensorType* tensor_type(pybind11::handle object) {
    for (const TensorType* known = tensor_types; known != nullptr; known = known->next) {
      if (Py_TYPE(object.ptr()) == known->type) return known;
    }
    return nullptr;
  }
  step::IndexArray tensor_indices(const dlpack::Tensor& tensor, const std::string& name);
  static dlpack::Tensor look(const TensorType& type, pybind11::handle tensor);
  // The view of a tensor; false where there is none.
  bool view_tensor(pybind11::handle object, bool codes, Array& array);
  Array require_tensor(const TensorType& type, pybind11::handle object, const std::string& kind,
                       const std::string& name, bool codes);

  // The last one added. Never freed, because Python may have ended before. Steps of other threads read it.
  inline static std::atomic<const TensorType*> tensor_types{nullptr};

  dlpack::Axes axes_;  // of the last tensor
  const PyTypeObject* ndarray_ = pybind11::detail::npy_api::get().PyArray_Type_;
};

}  // namespace gradstep::bind
