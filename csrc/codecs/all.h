#pragma once

#include <cstdint>

#include "base/compute.h"
#include "codecs/bfloat16.h"
#include "codecs/float16.h"
#include "codecs/native.h"
#include "codecs/q8.h"

// THE list of storage types: X(enumerator, codec). Their order is the value of the enumerator. The native ones come
// first, then those that stand for one value an item, then those whose blocks have a scale.
#define GS_CODECS(X)     \
  X(kFloat32, Float32)   \
  X(kFloat64, Float64)   \
  X(kFloat16, Float16)   \
  X(kBFloat16, BFloat16) \
  X(kQ8Signed, Q8Signed) \
  X(kQ8Unsigned, Q8Unsigned)

namespace gradstep {

enum class DType : std::uint8_t {
#define GS_ENUMERATOR(name, Codec) name,
  GS_CODECS(GS_ENUMERATOR)
#undef GS_ENUMERATOR
};

// What the rest of the project asks of a storage type.
struct DTypeInfo {
  const char* name;  // NumPy's
  std::int64_t item_size;
};

inline constexpr DTypeInfo kDTypes[] = {
#define GS_INFO(name, Codec) {codecs::Codec::kName, sizeof(codecs::Codec::Storage)},
    GS_CODECS(GS_INFO)
#undef GS_INFO
};
inline constexpr int kDTypeCount = sizeof(kDTypes) / sizeof(kDTypes[0]);

// The elements that share a scale, in the order of the tensor's indices.
inline constexpr std::int64_t kBlock = 256;
constexpr std::int64_t blocks_of(std::int64_t elements) { return (elements + kBlock - 1) / kBlock; }

constexpr const DTypeInfo& info(DType dtype) { return kDTypes[static_cast<int>(dtype)]; }
constexpr const char* dtype_name(DType dtype) { return info(dtype).name; }
constexpr std::int64_t item_size(DType dtype) { return info(dtype).item_size; }

// What rules compute in on it.
constexpr Compute compute_of(DType dtype) { return dtype == DType::kFloat64 ? Compute::kDouble : Compute::kFloat; }
// The type that is as it is computed in.
constexpr DType native_of(Compute compute) { return compute == Compute::kDouble ? DType::kFloat64 : DType::kFloat32; }

constexpr bool is_native(DType dtype) { return dtype <= DType::kFloat64; }
constexpr bool has_scales(DType dtype) { return dtype >= DType::kQ8Signed; }

// The random bits that rounding a value by chance takes.
constexpr int random_bits(DType dtype) {
  return has_scales(dtype) ? codecs::Q8Signed::kRandomBits : codecs::BFloat16::kRandomBits;
}
static_assert(codecs::Q8Unsigned::kRandomBits == codecs::Q8Signed::kRandomBits &&
              codecs::Float16::kRandomBits == codecs::BFloat16::kRandomBits);

// Whether a stream of a type is rounded by chance where steps are `asked` to: codes with scales always are.
constexpr bool by_chance(DType dtype, bool asked) { return has_scales(dtype) || (asked && !is_native(dtype)); }

}  // namespace gradstep
