#include "bind/dlpack.h"

#include <string>

namespace py = pybind11;

namespace gradstep::bind::dlpack {

const Exchange* interface_of(py::handle type) {
  if (!py::hasattr(type, "__dlpack_c_exchange_api__")) return nullptr;
  constexpr const char* kName = "dlpack_exchange_api";
  const py::object capsule = type.attr("__dlpack_c_exchange_api__");
  if (!PyCapsule_IsValid(capsule.ptr(), kName)) return nullptr;
  const auto* found = static_cast<const Exchange*>(PyCapsule_GetPointer(capsule.ptr(), kName));
  while (found != nullptr && found->major != 1) found = found->older;
  return found != nullptr && found->view != nullptr ? found : nullptr;
}

int storage_of(Type type) {
  if (type.lanes != 1) return kDTypeCount;
  const auto is = [=](TypeCode code, int bits) { return type.code == code && type.bits == bits; };
  if (is(kFloat, 32)) return static_cast<int>(DType::kFloat32);
  if (is(kFloat, 64)) return static_cast<int>(DType::kFloat64);
  if (is(kFloat, 16)) return static_cast<int>(DType::kFloat16);
  if (is(kBFloat, 16)) return static_cast<int>(DType::kBFloat16);
  if (is(kInt, 8)) return static_cast<int>(DType::kQ8Signed);
  if (is(kUInt, 8)) return static_cast<int>(DType::kQ8Unsigned);
  return kDTypeCount;
}

void Axes::assign(const Tensor& tensor) {
  shape.assign(tensor.shape, tensor.shape + tensor.rank);
  if (tensor.strides == nullptr) return pack(tensor.type);
  strides.assign(tensor.strides, tensor.strides + tensor.rank);
  for (std::int64_t& stride : strides) stride *= tensor.type.bits / 8;
}

void Axes::pack(Type type) {
  strides.resize(shape.size());
  std::int64_t packed = type.bits / 8;
  for (std::size_t axis = shape.size(); axis-- > 0; packed *= shape[axis]) strides[axis] = packed;
}

py::object shadow(const step::Array& array) {
  const py::tuple shape(array.rank), strides(array.rank);
  for (int axis = 0; axis < array.rank; ++axis) {
    shape[static_cast<std::size_t>(axis)] = array.shape[axis];
    strides[static_cast<std::size_t>(axis)] = array.strides[axis];
  }
  py::dict about;
  about["version"] = 3;
  about["data"] = py::make_tuple(reinterpret_cast<std::uintptr_t>(array.data), true);
  about["typestr"] = "|V" + std::to_string(item_size(array.dtype));
  about["shape"] = shape;
  about["strides"] = strides;
  const auto shadow = py::module_::import("types").attr("SimpleNamespace")(py::arg("__array_interface__") = about);
  return py::module_::import("numpy").attr("asarray")(shadow);
}

}  // namespace gradstep::bind::dlpack
