#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "step/array.h"

// The parts of DLPack (version 1.3), an exchange format of array libraries, that gradstep reads.
namespace gradstep::bind::dlpack {

enum DeviceType : std::int32_t { kCpu = 1, kCuda = 2, kCudaManaged = 13 };
enum TypeCode : std::uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBFloat = 4 };

struct Device {
  std::int32_t type, id;
};

struct Type {
  std::uint8_t code, bits;
  std::uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  std::int32_t rank;
  Type type;
  std::int64_t* shape;
  std::int64_t* strides;  // elements; null: packed
  std::uint64_t byte_offset;
};

// A capsule "dltensor" begins with the tensor; a capsule "dltensor_versioned" begins with this, before the tensor.
struct VersionedHead {
  std::uint32_t major, minor;
  void* context;
  void* deleter;
  std::uint64_t flags;
};
inline constexpr std::uint64_t kReadOnly = 1, kCopied = 2;

// The content of the capsule "dlpack_exchange_api" of a type.
struct Exchange {
  std::uint32_t major, minor;
  const Exchange* older;
  void *allocate, *to_managed, *from_managed;
  int (*view)(void* object, Tensor* tensor);  // 0, or -1 with a Python error; may be null
  int (*current_stream)(std::int32_t device_type, std::int32_t device, void** stream);
};

// The C interface of a type of arrays; null if it has none of a supported version.
const Exchange* interface_of(pybind11::handle type);

// The storage type; kDTypeCount if there is none.
int storage_of(Type type);

// A type as one number.
constexpr int number_of(Type type) { return type.code | type.bits << 8 | type.lanes << 16; }

// Shape and strides in bytes.
struct Axes {
  std::vector<std::int64_t> shape, strides;

  Axes() = default;
  explicit Axes(const Tensor& tensor) { assign(tensor); }
  void assign(const Tensor& tensor);
  // Sets the strides of an array without gaps in C order.
  void pack(Type type);
};

inline std::byte* data_of(const Tensor& tensor) { return static_cast<std::byte*>(tensor.data) + tensor.byte_offset; }

// The address of arrays without elements, whose pointer may be null: the core treats a null pointer as "not kept".
inline std::byte* const kNoMemory = reinterpret_cast<std::byte*>(256);

// A NumPy array with the addresses of an array of another library, which must not be read.
pybind11::object shadow(const step::Array& array);

}  // namespace gradstep::bind::dlpack
