#include "bind/cuda_arrays.h"

#include <cstdlib>

#include "bind/dlpack.h"
#include "bind/gil.h"
#include "cuda/runtime.h"

namespace py = pybind11;

namespace gradstep::bind {
namespace {

std::string text_of_type(py::handle object) {
  return py::hasattr(object, "dtype") ? std::string(py::str(object.attr("dtype"))) : "unknown";
}

// From NumPy's notation, as "<f4". bfloat16 has the notation of two untyped bytes there.
dlpack::Type type_of(const std::string& text, py::handle object) {
  if (text.size() < 3 || text[0] == '>') return {};
  const auto bits = static_cast<std::uint8_t>(8 * std::atoi(text.c_str() + 2));
  switch (text[1]) {
    case 'f':
      return {dlpack::kFloat, bits, 1};
    case 'i':
      return {dlpack::kInt, bits, 1};
    case 'u':
      return {dlpack::kUInt, bits, 1};
    case 'V':
      return text_of_type(object) == "bfloat16" ? dlpack::Type{dlpack::kBFloat, bits, 1} : dlpack::Type{};
    default:
      return {};
  }
}

std::string text_of_device(int device) { return "cuda:" + std::to_string(device); }

bool is_cuda(std::int32_t device_type) { return device_type == dlpack::kCuda || device_type == dlpack::kCudaManaged; }

}  // namespace

// The properties of an array.
struct CudaArrays::ArrayInfo {
  std::byte* data = nullptr;
  dlpack::Type type{};
  int device = -1;  // -1: unknown
  bool is_cuda = true, read_only = false, masked = false;
};

std::unique_ptr<step::Backend> CudaArrays::backend() {
  auto backend = std::make_unique<step::OnCuda>();
  backend_ = backend.get();
  return backend;
}

// From a DLPack tensor.
void CudaArrays::from_dlpack(const dlpack::Tensor& tensor, ArrayInfo& info) {
  info.data = dlpack::data_of(tensor);
  info.type = tensor.type;
  info.device = tensor.device.id;
  info.is_cuda = is_cuda(tensor.device.type);
  axes_.assign(tensor);
}

// The C interface of an object's type.
const dlpack::Exchange* CudaArrays::interface_of(py::handle object) {
  const py::handle type = py::type::handle_of(object);
  for (const auto& [known, interface] : interfaces_) {
    if (known.is(type)) return interface;
  }
  return interfaces_.emplace_back(py::reinterpret_borrow<py::object>(type), dlpack::interface_of(type)).second;
}

bool CudaArrays::see_by_exchange(py::handle object, ArrayInfo& info) {
  const dlpack::Exchange* const interface = interface_of(object);
  if (interface == nullptr) return false;
  dlpack::Tensor tensor;
  if (interface->view(object.ptr(), &tensor) != 0) throw py::error_already_set();
  from_dlpack(tensor, info);
#if defined(GRADSTEP_EMULATED_CUDA)
  info.is_cuda = true;
#endif
  return true;
}

bool CudaArrays::see_by_interface(py::handle object, ArrayInfo& info) {
  if (!py::hasattr(object, "__cuda_array_interface__")) return false;
  const auto about = py::dict(object.attr("__cuda_array_interface__"));
  const auto data = py::tuple(about["data"]);
  info.data = reinterpret_cast<std::byte*>(data[0].cast<std::uintptr_t>());
  info.read_only = data[1].cast<bool>();
  info.masked = about.contains("mask") && !about["mask"].is_none();
  info.type = type_of(about["typestr"].cast<std::string>(), object);
  axes_ = {};
  for (const py::handle length : py::tuple(about["shape"])) axes_.shape.push_back(length.cast<std::int64_t>());
  if (about.contains("strides") && !about["strides"].is_none()) {
    for (const py::handle stride : py::tuple(about["strides"])) axes_.strides.push_back(stride.cast<std::int64_t>());
  } else {
    axes_.pack(info.type);
  }
  return true;
}

bool CudaArrays::see_by_capsule(py::handle object, ArrayInfo& info) {
  if (!py::hasattr(object, "__dlpack__") || !py::hasattr(object, "__dlpack_device__")) return false;
  const auto device = py::tuple(object.attr("__dlpack_device__")());
  if (!is_cuda(device[0].cast<std::int32_t>())) return false;
  // -1: no synchronization, which is up to the caller. The memory stays valid as long as the object. Before version 1
  // of DLPack this method had no version argument, and arrays had no read-only flag.
  py::object capsule;
  try {
    capsule = object.attr("__dlpack__")(py::arg("stream") = -1, py::arg("max_version") = py::make_tuple(1, 0));
  } catch (const py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
    capsule = object.attr("__dlpack__")(py::arg("stream") = -1);
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    const auto* head = static_cast<dlpack::VersionedHead*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    if (head->major != 1) return false;
    info.read_only = (head->flags & (dlpack::kReadOnly | dlpack::kCopied)) != 0;
    from_dlpack(*reinterpret_cast<const dlpack::Tensor*>(head + 1), info);
  } else {
    if (!PyCapsule_IsValid(capsule.ptr(), "dltensor")) return false;
    from_dlpack(*static_cast<dlpack::Tensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor")), info);
  }
  return true;
}

Array CudaArrays::look(py::handle object, const std::string& kind, const std::string& name, bool codes, bool written) {
  ArrayInfo info;
  if (!see_by_exchange(object, info) && !see_by_interface(object, info) && !see_by_capsule(object, info)) {
    throw WrongType(kind + name + " must be an array on a GPU, not " + Py_TYPE(object.ptr())->tp_name);
  }
  if (info.masked) throw WrongType(kind + name + " is masked; masked arrays are not supported, pass its .data");
  if (!info.is_cuda) {
    throw WrongType(kind + name + " is not on a GPU" + (device_ < 0 ? "" : ", but " + first_ + " is"));
  }
  const int storage = dlpack::storage_of(info.type);
  if (storage == kDTypeCount || !is_supported(static_cast<DType>(storage), codes)) {
    throw WrongType(kind + name + " has dtype " + text_of_type(object) + "; supported are " + supported());
  }
  if (written && info.read_only) {
    throw std::invalid_argument(kind + name + " is read-only, and a step writes it in place");
  }
  Array array{info.data, static_cast<DType>(storage), static_cast<int>(axes_.shape.size()), axes_.shape.data(),
              axes_.strides.data()};
  const bool empty = step::size_of(array) == 0;
  if (empty && array.data == nullptr) array.data = dlpack::kNoMemory;
  if (empty && info.device < 0) return array;
  const std::int64_t size = item_size(array.dtype);
  bool aligned = reinterpret_cast<std::uintptr_t>(info.data) % static_cast<std::uintptr_t>(size) == 0;
  for (const std::int64_t stride : axes_.strides) aligned = aligned && stride % size == 0;
  if (!aligned) throw std::invalid_argument(kind + name + " is not aligned to its items, as a GPU needs");
  if (!empty && info.device < 0) info.device = cuda::device_of(info.data);
  if (info.device < 0) throw std::invalid_argument(kind + name + " points to no memory of a GPU");
  if (device_ < 0) {
    device_ = info.device;
    first_ = kind + name;
    backend_->use(device_, stream_);
  }
  if (info.device != device_) {
    throw std::invalid_argument(kind + name + " is on " + text_of_device(info.device) + ", but " + first_ + " on " +
                                text_of_device(device_));
  }
  return array;
}

void CudaArrays::wait() const { backend_->wait(); }

bool CudaArrays::is_unmoved(const Watched& watched) {
  ArrayInfo now;
  if (!see_by_exchange(watched.object, now)) return true;
  std::byte* const data = now.data == nullptr ? dlpack::kNoMemory : now.data;
  const Array was = watched.view();
  return data == was.data && axes_.shape.size() == static_cast<std::size_t>(was.rank) &&
         step::same(was.shape, axes_.shape.data(), was.rank) && step::same(was.strides, axes_.strides.data(), was.rank);
}

step::IndexArray CudaArrays::indices(py::handle object, const std::string& name) {
  backend_->check_rows();
  // Their library copies them in its own stream, which need not be that of the step.
  if (!py::isinstance<py::buffer>(object)) without_gil([this] { backend_->wait(); });
  const py::buffer on_host = py::module_::import("gradstep._libraries").attr("host_indices")(object, name);
  const py::buffer_info values = on_host.request();
  const auto* const first = static_cast<const std::int64_t*>(values.ptr);
  const auto kept = std::make_shared<const std::vector<std::int64_t>>(first, first + values.size);
  const auto* const data = reinterpret_cast<const std::byte*>(kept->data());
  return {data, sizeof(std::int64_t), true, static_cast<std::int64_t>(kept->size()), sizeof(std::int64_t), kept};
}

Array CudaArrays::view(py::handle object, const std::string& kind, const std::string& name, bool codes) {
  return look(object, kind, name, codes, false);
}

Array CudaArrays::writable_view(py::handle object, const std::string& kind, const std::string& name, bool codes) {
  return look(object, kind, name, codes, true);
}

}  // namespace gradstep::bind
