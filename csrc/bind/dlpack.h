#pragma once

#include <cstdint>

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

}  // namespace gradstep::bind::dlpack
