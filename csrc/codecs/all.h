#pragma once

#include <cstdint>

#include "base/compute.h"
#include "codecs/native.h"

// THE list of storage types: X(enumerator, codec). Their order is the value of the enumerator.
#define GS_CODECS(X)   \
  X(kFloat32, Float32) \
  X(kFloat64, Float64)

namespace gradstep {

enum class DType : std::uint8_t {
#define GS_ENUMERATOR(name, Codec) name,
  GS_CODECS(GS_ENUMERATOR)
#undef GS_ENUMERATOR
};

// What the rest of the project asks of a storage type.
struct DTypeInfo {
  const char* name;
  std::int64_t item_size;
  Compute compute;
};

inline constexpr DTypeInfo kDTypes[] = {
#define GS_INFO(name, Codec) {codecs::Codec::kName, sizeof(codecs::Codec::Storage), kComputeOf<codecs::Codec::Compute>},
    GS_CODECS(GS_INFO)
#undef GS_INFO
};

constexpr const DTypeInfo& info(DType dtype) { return kDTypes[static_cast<int>(dtype)]; }
constexpr const char* dtype_name(DType dtype) { return info(dtype).name; }
constexpr std::int64_t item_size(DType dtype) { return info(dtype).item_size; }

}  // namespace gradstep
