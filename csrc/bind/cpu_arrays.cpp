#include "bind/cpu_arrays.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <numeric>
#include <vector>

#include "step/on_cpu.h"
#include "step/ranges.h"

namespace py = pybind11;

namespace gradstep::bind {
namespace {

// ndarray, NumPy's subclasses that define hooks without a meaning for steps, and object.
PyObject* plain_types[4] = {};

// The hooks by which a subclass changes operations on its arrays, or gives new arrays a state.
PyObject* hooks[6] = {};

// The hook that a class of arrays or a base of it defines; null if there is none. Only looks up dictionaries, because
// no Python code may run here (see Stepper::step).
PyObject* hook_of(PyTypeObject* type) {
  const py::handle bases = type->tp_mro;
  for (py::ssize_t i = 0; i < PyTuple_GET_SIZE(bases.ptr()); ++i) {
    PyObject* const base = PyTuple_GET_ITEM(bases.ptr(), i);
    if (std::find(std::begin(plain_types), std::end(plain_types), base) != std::end(plain_types)) continue;
    PyObject* const attributes = reinterpret_cast<PyTypeObject*>(base)->tp_dict;
    if (attributes == nullptr) continue;  // a built-in type, from Python 3.12 on
    for (PyObject* const hook : hooks) {
      if (PyDict_Contains(attributes, hook) == 1) return hook;
    }
  }
  return nullptr;
}

bool derives_from(PyTypeObject* type, const char* name) {
  const py::handle bases = type->tp_mro;
  for (py::ssize_t i = 0; i < PyTuple_GET_SIZE(bases.ptr()); ++i) {
    const auto* base = reinterpret_cast<PyTypeObject*>(PyTuple_GET_ITEM(bases.ptr(), i));
    if (std::strcmp(base->tp_name, name) == 0) return true;
  }
  return false;
}

bool is_masked(PyTypeObject* type) { return derives_from(type, "MaskedArray"); }

// Without bool, and without what only Python code could convert.
bool is_real_number(py::handle object) {
  PyTypeObject* const type = Py_TYPE(object.ptr());
  if (PyFloat_CheckExact(object.ptr()) || PyLong_CheckExact(object.ptr())) return true;
  if (derives_from(type, "numpy.timedelta64")) return false;  // an integer, says NumPy
  return derives_from(type, "numpy.floating") || derives_from(type, "numpy.integer") ||
         derives_from(type, "ml_dtypes.bfloat16");
}

const py::detail::PyArray_Proxy& fields_of(PyObject* array) { return *py::detail::array_proxy(array); }

bool is_swapped(const py::detail::PyArrayDescr_Proxy& dtype) {
  const std::uint16_t one = 1;
  const bool little = *reinterpret_cast<const unsigned char*>(&one) == 1;
  return dtype.byteorder == (little ? '>' : '<');
}

// The fast path: an ndarray, not of a subclass, with one of NumPy's own descriptors.
bool view_plain(py::handle object, Array& array) {
  static_assert(sizeof(py::ssize_t) == sizeof(std::int64_t), "gradstep needs a 64-bit system");
  if (reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())) != plain_types[0]) return false;
  const auto& fields = fields_of(object.ptr());
  for (int i = 0; i < kDTypeCount; ++i) {
    if (fields.descr != CpuArrays::descriptors[i] || !is_supported(static_cast<DType>(i), false)) continue;
    array = {reinterpret_cast<std::byte*>(fields.data), static_cast<DType>(i), fields.nd,
             reinterpret_cast<const std::int64_t*>(fields.dimensions),
             reinterpret_cast<const std::int64_t*>(fields.strides)};
    return true;
  }
  return false;
}

// An attribute of ml_dtypes; null if it is not imported. Looks up dictionaries, because importing a module or getting
// its attributes may run Python code.
PyObject* of_ml_dtypes(const char* name) {
  PyObject* const module = PyDict_GetItemString(PyImport_GetModuleDict(), "ml_dtypes");
  return module != nullptr && PyModule_Check(module) ? PyDict_GetItemString(PyModule_GetDict(module), name) : nullptr;
}

// The storage type of a descriptor in native byte order; kDTypeCount if there is none.
int storage_of(PyObject* descriptor) {
  const auto* const dtype = py::detail::array_descriptor_proxy(descriptor);
  for (int i = 0; i < kDTypeCount; ++i) {
    const auto* const known = py::detail::array_descriptor_proxy(CpuArrays::descriptors[i]);
    if (known != nullptr && known->type_num == dtype->type_num) return i;
  }
  for (int i = 0; i < kDTypeCount; ++i) {
    // Compares the type itself, because another class may have its name, and another size.
    if (CpuArrays::descriptors[i] != nullptr || dtype->typeobj != of_ml_dtypes(kDTypes[i].name)) continue;
    if (py::reinterpret_borrow<py::dtype>(descriptor).itemsize() != kDTypes[i].item_size) continue;
    Py_INCREF(descriptor);  // for ever
    CpuArrays::descriptors[i] = descriptor;
    return i;
  }
  return kDTypeCount;
}

}  // namespace

void CpuArrays::initialize() {
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
    } catch (const py::error_already_set&) {  // NumPy does not have it
    }
  }
}

void CpuArrays::check_array_class(py::handle object, const std::string& kind, const std::string& name) {
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

CpuArrays::Zeros::Zeros(const py::list& arrays, const py::dtype& dtype) : descriptor_(dtype) {
  constexpr std::int64_t kAlignment = 16;
  const int storage = storage_of(dtype.ptr());
  if (storage == kDTypeCount) throw WrongType("Zeros needs a type that states may have");
  dtype_ = static_cast<DType>(storage);
  places_.reserve(arrays.size());
  std::vector<std::int64_t> offsets;
  offsets.reserve(arrays.size() + 1);
  std::int64_t size = 0;
  std::vector<int> order;
  for (const py::handle array : arrays) {
    if (!py::isinstance<py::array>(array)) throw WrongType("Zeros needs NumPy arrays");
    const auto& of = fields_of(array.ptr());
    const auto rank = static_cast<std::size_t>(of.nd);
    places_.push_back({nullptr, axes_.size(), of.nd});
    offsets.push_back(size);
    axes_.insert(axes_.end(), of.dimensions, of.dimensions + rank);
    axes_.resize(axes_.size() + rank);
    order.resize(rank);
    std::iota(order.begin(), order.end(), 0);
    if (rank > 1) {
      std::stable_sort(order.begin(), order.end(),
                       [&](int a, int b) { return std::abs(of.strides[a]) > std::abs(of.strides[b]); });
    }
    std::int64_t stride = item_size(dtype_);
    for (auto axis = order.rbegin(); axis != order.rend(); ++axis) {
      axes_[axes_.size() - rank + static_cast<std::size_t>(*axis)] = stride;
      stride *= of.dimensions[*axis];
    }
    size = (size + stride + kAlignment - 1) / kAlignment * kAlignment;
  }
  memory_ = py::module_::import("numpy").attr("zeros")(size, "u1");
  auto* const data = reinterpret_cast<std::byte*>(fields_of(memory_.ptr()).data);
  for (std::size_t i = 0; i < places_.size(); ++i) places_[i].data = data + offsets[i];
}

py::object CpuArrays::Zeros::make(std::size_t i) const {
  const auto& numpy = py::detail::npy_api::get();
  constexpr int kFlags = py::detail::npy_api::NPY_ARRAY_WRITEABLE_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  const Array array = view(i);
  const auto* const shape = reinterpret_cast<const py::ssize_t*>(array.shape);
  const auto* const strides = reinterpret_cast<const py::ssize_t*>(array.strides);
  auto made = py::reinterpret_steal<py::object>(
      numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, py::object(descriptor_).release().ptr(), array.rank, shape,
                                  strides, array.data, kFlags, nullptr));
  if (!made || numpy.PyArray_SetBaseObject_(made.ptr(), py::object(memory_).release().ptr()) != 0) {
    throw py::error_already_set();
  }
  return made;
}

std::int64_t CpuArrays::first_overlap(const py::list& arrays, const py::list& others) {
  const auto extent_of = [](py::handle object) {
    if (!py::isinstance<py::array>(object)) throw WrongType("first_overlap needs NumPy arrays");
    const auto& fields = fields_of(object.ptr());
    const auto item_size = py::reinterpret_borrow<py::dtype>(fields.descr).itemsize();
    return step::extent(reinterpret_cast<std::uintptr_t>(fields.data), item_size, fields.nd,
                        reinterpret_cast<const std::int64_t*>(fields.dimensions),
                        reinterpret_cast<const std::int64_t*>(fields.strides));
  };
  std::vector<step::Extent> extents;
  extents.reserve(others.size());
  for (const py::handle other : others) extents.push_back(extent_of(other));
  const step::Ranges taken(std::move(extents));
  std::int64_t i = 0;
  for (const py::handle array : arrays) {
    const step::Extent bytes = extent_of(array);
    if (bytes.begin != bytes.end && taken.gap_around(bytes).end == 0) return i;
    ++i;
  }
  return -1;
}

void CpuArrays::add_tensor_type(const py::type& type, const py::object& is_negative,
                                const py::object& increment_version) {
  auto* const added = reinterpret_cast<PyTypeObject*>(type.ptr());
  for (const TensorType* known = tensor_types; known != nullptr; known = known->next) {
    if (known->type == added) return;
  }
  const dlpack::Exchange* const exchange = dlpack::interface_of(type);
  if (exchange == nullptr) throw WrongType(std::string(added->tp_name) + " has no C interface of DLPack");
  py::object(type).release();  // for ever
  tensor_types = new TensorType{added, exchange, is_negative, increment_version, tensor_types};
}

dlpack::Tensor CpuArrays::look(const TensorType& type, py::handle tensor) {
  dlpack::Tensor found;
  if (type.exchange->view(tensor.ptr(), &found) != 0) throw py::error_already_set();
  return found;
}

bool CpuArrays::view_tensor(py::handle object, bool codes, Array& array) {
  const TensorType* const type = tensor_type(object);
  if (type == nullptr) return false;
  PyObject* const arguments[] = {object.ptr()};
  const auto negative =
      py::reinterpret_steal<py::object>(PyObject_Vectorcall(type->is_negative.ptr(), arguments, 1, nullptr));
  if (!negative) throw py::error_already_set();
  if (negative.ptr() != Py_False) return false;
  dlpack::Tensor tensor;
  if (type->exchange->view(object.ptr(), &tensor) != 0) {
    PyErr_Clear();
    return false;
  }
  const int storage = dlpack::storage_of(tensor.type);
  if (tensor.device.type != dlpack::kCpu || storage == kDTypeCount) return false;
  if (!is_supported(static_cast<DType>(storage), codes)) return false;
  axes_.assign(tensor);
  array = {dlpack::data_of(tensor), static_cast<DType>(storage), tensor.rank, axes_.shape.data(), axes_.strides.data()};
  if (array.data == nullptr) {
    if (step::size_of(array) != 0) return false;  // a tensor without memory of its own
    array.data = dlpack::kNoMemory;
  }
  return true;
}

Array CpuArrays::require_tensor(const TensorType& type, py::handle object, const std::string& kind,
                                const std::string& name, bool codes) {
  Array array;
  if (view_tensor(object, codes, array)) return array;
  const auto text = [&](const char* attribute) { return py::str(object.attr(attribute)).cast<std::string>(); };
  if (const std::string layout = text("layout"); layout != "torch.strided") {
    throw WrongType(kind + name + " has layout " + layout + "; only strided tensors are supported");
  }
  if (const std::string device = text("device"); device != "cpu") {
    throw WrongType(kind + name + " is on " + device + ", but other arrays are in the processor's memory");
  }
  const dlpack::Tensor tensor = look(type, object);
  const int storage = dlpack::storage_of(tensor.type);
  if (storage == kDTypeCount || !is_supported(static_cast<DType>(storage), codes)) {
    throw WrongType(kind + name + " has dtype " + text("dtype") + "; supported are " + supported());
  }
  throw std::invalid_argument(kind + name + " has values that differ from those in memory; pass resolve_neg()");
}

void CpuArrays::Written::add(py::handle object) {
  const TensorType* const type = tensor_type(object);
  if (type == nullptr) return;
  tensors_.append(object);
  increment_version_ = &type->increment_version;
}

void CpuArrays::Written::publish() {
  if (increment_version_ != nullptr) (*increment_version_)(tensors_);
}

std::unique_ptr<step::Backend> CpuArrays::backend() { return step::on_cpu(); }

Array CpuArrays::view(py::handle object, const std::string& kind, const std::string& name, bool codes) {
  Array array;
  if (view_plain(object, array)) return array;
  if (const TensorType* const type = tensor_type(object)) return require_tensor(*type, object, kind, name, codes);
  if (!py::isinstance<py::array>(object)) {
    for (const TensorType* known = tensor_types; known != nullptr; known = known->next) {
      if (PyType_IsSubtype(Py_TYPE(object.ptr()), known->type) == 0) continue;
      throw WrongType(kind + name + " is of the subclass " + Py_TYPE(object.ptr())->tp_name + " of " +
                      known->type->tp_name + ", whose methods would be ignored; pass a plain tensor");
    }
    const char* const cure = py::hasattr(object, "__array__") ? "; numpy.asarray() makes one of it" : "";
    throw WrongType(kind + name + " must be a NumPy array, not " + Py_TYPE(object.ptr())->tp_name + cure);
  }
  check_array_class(object, kind, name);
  const auto& fields = fields_of(object.ptr());
  array = {reinterpret_cast<std::byte*>(fields.data),
           {},
           fields.nd,
           reinterpret_cast<const std::int64_t*>(fields.dimensions),
           reinterpret_cast<const std::int64_t*>(fields.strides)};

  const auto* dtype = py::detail::array_descriptor_proxy(fields.descr);
  const bool swapped = is_swapped(*dtype);
  const int storage = swapped ? kDTypeCount : storage_of(fields.descr);
  if (storage != kDTypeCount && is_supported(static_cast<DType>(storage), codes)) {
    array.dtype = static_cast<DType>(storage);
    return array;
  }
  throw WrongType(kind + name + " has dtype " + std::string(py::str(py::handle(fields.descr))) +
                  (swapped ? ", which is byte-swapped" : "") + "; supported are " + supported() +
                  " in native byte order");
}

step::IndexArray CpuArrays::tensor_indices(const dlpack::Tensor& tensor, const std::string& name) {
  const auto [code, bits, lanes] = tensor.type;
  if ((code != dlpack::kInt && code != dlpack::kUInt) || lanes != 1 || tensor.device.type != dlpack::kCpu) {
    throw WrongType(name + " must be integers in the processor's memory");
  }
  if (tensor.rank != 1)
    throw std::invalid_argument(name + " must have one axis, but have " + std::to_string(tensor.rank));
  axes_.assign(tensor);
  return {dlpack::data_of(tensor), bits / 8, code == dlpack::kInt, axes_.shape[0], axes_.strides[0], nullptr};
}

step::IndexArray CpuArrays::indices(py::handle object, const std::string& name) {
  if (const TensorType* const type = tensor_type(object)) return tensor_indices(look(*type, object), name);
  if (!py::isinstance<py::array>(object)) {
    throw WrongType(name + " must be a NumPy array of integers, not " + Py_TYPE(object.ptr())->tp_name);
  }
  check_array_class(object, name, "");
  const auto& fields = fields_of(object.ptr());
  const auto* const dtype = py::detail::array_descriptor_proxy(fields.descr);
  if ((dtype->kind != 'i' && dtype->kind != 'u') || is_swapped(*dtype)) {
    throw WrongType(name + " must be integers in native byte order, but have dtype " +
                    std::string(py::str(py::handle(fields.descr))) +
                    (dtype->kind == 'b' ? "; numpy.flatnonzero(mask) gives the indices of a mask" : ""));
  }
  if (fields.nd != 1) throw std::invalid_argument(name + " must have one axis, but have " + std::to_string(fields.nd));
  const auto size = py::reinterpret_borrow<py::dtype>(fields.descr).itemsize();
  return {reinterpret_cast<const std::byte*>(fields.data),
          static_cast<int>(size),
          dtype->kind == 'i',
          fields.dimensions[0],
          fields.strides[0],
          nullptr};
}

py::object CpuArrays::number_as_array(py::handle object) {
  if (!is_real_number(object)) return {};
  const double value = PyFloat_AsDouble(object.ptr());
  if (value == -1.0 && PyErr_Occurred() != nullptr) throw py::error_already_set();
  py::array_t<double> array(std::vector<py::ssize_t>{});
  *array.mutable_data() = value;
  return std::move(array);
}

Array CpuArrays::writable_view(py::handle object, const std::string& kind, const std::string& name, bool codes) {
  const Array array = view(object, kind, name, codes);
  if (tensor_type(object) != nullptr) return array;
  if (!py::detail::check_flags(object.ptr(), py::detail::npy_api::NPY_ARRAY_WRITEABLE_)) {
    throw std::invalid_argument(kind + name + " is read-only, and a step writes it in place");
  }
  return array;
}

CpuArrays::Watched::Watched(const py::object& the_object, const Array& array, const std::string* the_kind,
                            std::size_t the_tensor, Role role)
    : object(the_object), tensor(the_tensor), kind(the_kind), role_(role), array_(array) {
  if (tensor_type(object) != nullptr) return;
  if (fields_of(object.ptr()).base == nullptr) unresizable_ = py::weakref(object);
  descriptor_ = py::reinterpret_borrow<py::object>(fields_of(object.ptr()).descr);
}

CpuArrays::Seal CpuArrays::Watched::seal() const {
  const auto& now = fields_of(object.ptr());
  const char* const data = reinterpret_cast<const char*>(array_.data);
  if (const TensorType* const type = tensor_type(object)) {
    return {type->exchange,
            &now,
            data,
            nullptr,
            nullptr,
            nullptr,
            array_.axes.data(),
            array_.rank,
            dlpack::number_of(look(*type, object).type)};
  }
  return {nullptr,
          &now,
          now.data,
          now.descr,
          now.dimensions,
          now.strides,
          role_ == Role::kState ? nullptr : array_.axes.data(),
          array_.rank,
          role_ == Role::kGradient ? 0 : py::detail::npy_api::NPY_ARRAY_WRITEABLE_};
}

bool CpuArrays::Seal::is_unmoved() const {
  dlpack::Tensor now;
  auto* const object = reinterpret_cast<PyObject*>(const_cast<py::detail::PyArray_Proxy*>(array));
  if (tensor->view(object, &now) != 0) {
    PyErr_Clear();
    return false;
  }
  const std::byte* const found = now.data == nullptr ? dlpack::kNoMemory : dlpack::data_of(now);
  bool same = reinterpret_cast<const char*>(found) == data && now.rank == rank &&
              dlpack::number_of(now.type) == flags && now.device.type == dlpack::kCpu &&
              step::same(axes, now.shape, rank);
  for (int axis = 0; same && now.strides != nullptr && axis < rank; ++axis) {
    same = axes[rank + axis] == now.strides[axis] * (now.type.bits / 8);
  }
  return same;
}

void CpuArrays::Watched::check_closely(const std::string& name) const {
  if (tensor_type(object) != nullptr) {
    throw std::invalid_argument(name + " was moved or reshaped after the optimizer was made");
  }
  const auto& fields = fields_of(object.ptr());
  const Array was = view();
  const bool moved = reinterpret_cast<const std::byte*>(fields.data) != was.data || fields.nd != was.rank ||
                     !step::same(was.shape, fields.dimensions, was.rank) ||
                     !step::same(was.strides, fields.strides, was.rank);
  if (moved) throw std::invalid_argument(name + " was moved or reshaped after the optimizer was made");
  const bool codes = has_scales(was.dtype);
  const Array now = role_ == Role::kGradient ? CpuArrays().view(object, name, "")
                                             : CpuArrays().writable_view(object, name, "", codes);
  if (now.dtype != was.dtype) throw WrongType(name + " was given another dtype after the optimizer was made");
}

}  // namespace gradstep::bind
