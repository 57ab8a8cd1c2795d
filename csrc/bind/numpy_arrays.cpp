#include "bind/numpy_arrays.h"

#include <cstring>

#include "step/on_cpu.h"

namespace py = pybind11;

namespace gradstep::bind {
namespace {

// NumPy's descriptor of each, in its one native form. Some belong to ml_dtypes, which need not be installed: they are
// null until an array brings them.
PyObject** descriptors() {
  static PyObject** const all = [] {
    static PyObject* of[kDTypeCount] = {};
    for (int i = 0; i < kDTypeCount; ++i) {
      try {
        of[i] = py::dtype(std::string(kDTypes[i].name)).release().ptr();
      } catch (const py::error_already_set&) {  // NumPy does not know it
      }
    }
    return of;
  }();
  return all;
}

// Asked of the type's bases by name: importing numpy.ma would run Python here (see Stepper::step).
bool is_masked(py::handle object) {
  PyTypeObject* const type = Py_TYPE(object.ptr());
  if (type == py::detail::npy_api::get().PyArray_Type_) return false;
  const py::handle bases = type->tp_mro;
  for (py::ssize_t i = 0; i < PyTuple_GET_SIZE(bases.ptr()); ++i) {
    const auto* base = reinterpret_cast<PyTypeObject*>(PyTuple_GET_ITEM(bases.ptr(), i));
    if (std::strcmp(base->tp_name, "MaskedArray") == 0) return true;
  }
  return false;
}

const py::detail::PyArray_Proxy& fields_of(PyObject* array) { return *py::detail::array_proxy(array); }

// What nearly every gradient is, in a few loads: an ndarray, of no subclass, with one of NumPy's own descriptors.
bool view_plain(py::handle object, Array& array) {
  static_assert(sizeof(py::ssize_t) == sizeof(std::int64_t), "gradstep needs a 64-bit system");
  static const PyTypeObject* const ndarray = py::detail::npy_api::get().PyArray_Type_;
  static PyObject* const* const known = descriptors();
  if (Py_TYPE(object.ptr()) != ndarray) return false;
  const auto& fields = fields_of(object.ptr());
  for (int i = 0; i < kDTypeCount; ++i) {
    if (fields.descr != known[i] || !is_supported(static_cast<DType>(i), false)) continue;
    array = {reinterpret_cast<std::byte*>(fields.data), static_cast<DType>(i), fields.nd,
             reinterpret_cast<const std::int64_t*>(fields.dimensions),
             reinterpret_cast<const std::int64_t*>(fields.strides)};
    return true;
  }
  return false;
}

// The storage type that a descriptor in native byte order stands for; kDTypeCount: none.
int storage_of(PyObject* descriptor) {
  const auto* const dtype = py::detail::array_descriptor_proxy(descriptor);
  for (int i = 0; i < kDTypeCount; ++i) {
    const auto* const known = py::detail::array_descriptor_proxy(descriptors()[i]);
    if (known != nullptr && known->type_num == dtype->type_num) return i;
  }
  const auto* const type = reinterpret_cast<const PyTypeObject*>(dtype->typeobj);
  for (int i = 0; i < kDTypeCount; ++i) {
    if (descriptors()[i] != nullptr || type->tp_name != std::string("ml_dtypes.") + kDTypes[i].name) continue;
    Py_INCREF(descriptor);
    descriptors()[i] = descriptor;
    return i;
  }
  return kDTypeCount;
}

}  // namespace

std::unique_ptr<step::Backend> NumPyArrays::backend() { return step::on_cpu(); }

Array NumPyArrays::view(py::handle object, const std::string& kind, const std::string& name, bool codes) {
  Array array;
  if (view_plain(object, array)) return array;
  if (!py::isinstance<py::array>(object)) {
    throw WrongType(kind + name + " must be a NumPy array, not " + Py_TYPE(object.ptr())->tp_name);
  }
  if (is_masked(object)) {
    throw WrongType(kind + name + " is a masked array; masked arrays are not supported, pass its .data");
  }
  const auto& fields = fields_of(object.ptr());
  array = {reinterpret_cast<std::byte*>(fields.data),
           {},
           fields.nd,
           reinterpret_cast<const std::int64_t*>(fields.dimensions),
           reinterpret_cast<const std::int64_t*>(fields.strides)};

  const auto* dtype = py::detail::array_descriptor_proxy(fields.descr);
  const std::uint16_t one = 1;
  const bool little = *reinterpret_cast<const unsigned char*>(&one) == 1;
  const bool swapped = dtype->byteorder == (little ? '>' : '<');
  const int storage = swapped ? kDTypeCount : storage_of(fields.descr);
  if (storage != kDTypeCount && is_supported(static_cast<DType>(storage), codes)) {
    array.dtype = static_cast<DType>(storage);
    return array;
  }
  throw WrongType(kind + name + " has dtype " + std::string(py::str(py::handle(fields.descr))) +
                  (swapped ? ", which is byte-swapped" : "") + "; supported are " + supported() +
                  " in native byte order");
}

Array NumPyArrays::writable_view(py::handle object, const std::string& kind, const std::string& name, bool codes) {
  const Array array = view(object, kind, name, codes);
  if (!py::detail::check_flags(object.ptr(), py::detail::npy_api::NPY_ARRAY_WRITEABLE_)) {
    throw std::invalid_argument(kind + name + " is read-only, and a step writes it in place");
  }
  return array;
}

NumPyArrays::Watched::Watched(const py::object& the_object, const Array& the_array, std::string the_name, Role role)
    : object(the_object),
      array(the_array),
      name(std::move(the_name)),
      unresizable_(the_object),
      descriptor_(py::reinterpret_borrow<py::object>(fields_of(the_object.ptr()).descr)),
      shape_at_(fields_of(the_object.ptr()).dimensions),
      strides_at_(fields_of(the_object.ptr()).strides),
      role_(role) {}

}  // namespace gradstep::bind
