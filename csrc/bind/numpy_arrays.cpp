#include "bind/numpy_arrays.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "step/on_cpu.h"

namespace py = pybind11;

namespace gradstep::bind {
namespace {

// NumPy's descriptor of each, in its one native form. Some belong to ml_dtypes, which need not be installed: they are
// null until an array brings them.
PyObject* descriptors[kDTypeCount] = {};

// ndarray, those subclasses of NumPy's that define hooks and yet hold numbers like any other array, and object.
PyObject* plain_types[4] = {};

// What a subclass defines that has a say in operations on its arrays, or gives new ones a state.
PyObject* hooks[6] = {};

// The hook that a class of arrays defines, itself or in a base; null: none, and a step treats it as ndarray. A few
// look-ups in dictionaries, because no Python may run here (see Stepper::step).
PyObject* hook_of(PyTypeObject* type) {
  const py::handle bases = type->tp_mro;
  for (py::ssize_t i = 0; i < PyTuple_GET_SIZE(bases.ptr()); ++i) {
    PyObject* const base = PyTuple_GET_ITEM(bases.ptr(), i);
    if (std::find(std::begin(plain_types), std::end(plain_types), base) != std::end(plain_types)) continue;
    PyObject* const attributes = reinterpret_cast<PyTypeObject*>(base)->tp_dict;
    if (attributes == nullptr) continue;  // of a type of Python's own, from 3.12 on
    for (PyObject* const hook : hooks) {
      if (PyDict_Contains(attributes, hook) == 1) return hook;
    }
  }
  return nullptr;
}

bool is_masked(PyTypeObject* type) {
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
  if (reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())) != plain_types[0]) return false;
  const auto& fields = fields_of(object.ptr());
  for (int i = 0; i < kDTypeCount; ++i) {
    if (fields.descr != descriptors[i] || !is_supported(static_cast<DType>(i), false)) continue;
    array = {reinterpret_cast<std::byte*>(fields.data), static_cast<DType>(i), fields.nd,
             reinterpret_cast<const std::int64_t*>(fields.dimensions),
             reinterpret_cast<const std::int64_t*>(fields.strides)};
    return true;
  }
  return false;
}

// What ml_dtypes has under a name; null where nobody has imported it. Looked up by hand: to import a module, or to ask
// it for an attribute, may run Python.
PyObject* of_ml_dtypes(const char* name) {
  PyObject* const module = PyDict_GetItemString(PyImport_GetModuleDict(), "ml_dtypes");
  return module != nullptr && PyModule_Check(module) ? PyDict_GetItemString(PyModule_GetDict(module), name) : nullptr;
}

// The storage type that a descriptor in native byte order stands for; kDTypeCount: none.
int storage_of(PyObject* descriptor) {
  const auto* const dtype = py::detail::array_descriptor_proxy(descriptor);
  for (int i = 0; i < kDTypeCount; ++i) {
    const auto* const known = py::detail::array_descriptor_proxy(descriptors[i]);
    if (known != nullptr && known->type_num == dtype->type_num) return i;
  }
  for (int i = 0; i < kDTypeCount; ++i) {
    // The type itself, because any class may have its name, and a size of its own.
    if (descriptors[i] != nullptr || dtype->typeobj != of_ml_dtypes(kDTypes[i].name)) continue;
    if (py::reinterpret_borrow<py::dtype>(descriptor).itemsize() != kDTypes[i].item_size) continue;
    Py_INCREF(descriptor);
    descriptors[i] = descriptor;
    return i;
  }
  return kDTypeCount;
}

}  // namespace

void NumPyArrays::initialize() {
  const py::module_ numpy = py::module_::import("numpy");
  int i = 0;
  for (const char* type : {"ndarray", "memmap", "recarray"}) {
    plain_types[i++] = numpy.attr(type).cast<py::object>().release().ptr();
  }
  plain_types[i] = reinterpret_cast<PyObject*>(&PyBaseObject_Type);
  i = 0;
  for (const char* hook : {"__array_finalize__", "__array_ufunc__", "__array_function__", "__array_wrap__",
                           "__array_prepare__", "__array_priority__"}) {
    hooks[i++] = PyUnicode_InternFromString(hook);
  }
  for (i = 0; i < kDTypeCount; ++i) {
    try {
      descriptors[i] = py::dtype(std::string(kDTypes[i].name)).release().ptr();
    } catch (const py::error_already_set&) {  // NumPy does not know it
    }
  }
}

void NumPyArrays::check_array_class(py::handle object, const std::string& kind, const std::string& name) {
  PyTypeObject* const type = Py_TYPE(object.ptr());
  PyObject* const hook = hook_of(type);
  if (hook == nullptr) return;
  const py::handle of = reinterpret_cast<PyObject*>(type);
  const auto full = py::str("{}.{}").format(of.attr("__module__"), of.attr("__qualname__")).cast<std::string>();
  throw WrongType(kind + name +
                  (is_masked(type)
                       ? " is a masked array (" + full + "); masked arrays are not supported, pass its .data"
                       : " is of the ndarray subclass " + full + ", whose " + py::str(hook).cast<std::string>() +
                             " would be ignored; pass numpy.asarray(x)"));
}

std::unique_ptr<step::Backend> NumPyArrays::backend() { return step::on_cpu(); }

Array NumPyArrays::view(py::handle object, const std::string& kind, const std::string& name, bool codes) {
  Array array;
  if (view_plain(object, array)) return array;
  if (!py::isinstance<py::array>(object)) {
    throw WrongType(kind + name + " must be a NumPy array, not " + Py_TYPE(object.ptr())->tp_name);
  }
  check_array_class(object, kind, name);
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
