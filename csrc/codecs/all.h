#pragma once

#include <cstdint>

#include "codecs/native.h"

// THE list of storage types: X(enumerator, codec). Their order is the value of the enumerator.
#define GS_CODECS(X)      \
  X(kFloat32, Float32)    \
  X(kFloat64, Float64)

namespace gradstep {

enum class DType : std::uint8_t {
#define GS_ENUMERATOR(name, Codec) name,
  GS_CODECS(GS_ENUMERATOR)
#undef GS_ENUMERATOR
};

constexpr std::int64_t item_size(DType dtype) {
  switch (dtype) {
#define GS_CASE(name, Codec) \
  case DType::name:          \
    return sizeof(codecs::Codec::Compute);
    GS_CODECS(GS_CASE)
#undef GS_CASE
  }
  return 0;
}

constexpr const char* dtype_name(DType dtype) {
  switch (dtype) {
#define GS_CASE(name, Codec) \
  case DType::name:          \
    return codecs::Codec::kName;
    GS_CODECS(GS_CASE)
#undef GS_CASE
  }
  return "";
}

}  // namespace gradstep
