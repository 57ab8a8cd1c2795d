#pragma once

#include <cstdint>

#include "base/compute.h"
#include "codecs/bfloat16.h"
#include "codecs/float16.h"
#include "codecs/native.h"
#include "codecs/q8.h"

// THE list of storage types: X(enumerator, codec). The order defines the enumerators' values and has no other meaning.
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

// A storage type as its codec declares it.
struct DTypeInfo {
  const char* name;  // NumPy's
  std::int64_t item_size;
  CodecKind kind;
  unsigned roles;
  int random_bits;
  Compute compute;  // what rules compute in on a parameter of it
};

inline constexpr DTypeInfo kDTypes[] = {
#define GS_INFO(name, Codec)                                                    \
  {codecs::Codec::kName,  sizeof(codecs::Codec::Storage), codecs::Codec::kKind, \
   codecs::Codec::kRoles, codecs::Codec::kRandomBits,     kComputeOf<codecs::Codec::Storage>},
    GS_CODECS(GS_INFO)
#undef GS_INFO
};
template <class Codec>
inline constexpr DType kDTypeOf{};
#define GS_DTYPE_OF(name, Codec) \
  template <>                    \
  inline constexpr DType kDTypeOf<codecs::Codec> = DType::name;
GS_CODECS(GS_DTYPE_OF)
#undef GS_DTYPE_OF

inline constexpr int kDTypeCount = sizeof(kDTypes) / sizeof(kDTypes[0]);

// The number of elements that share a scale, in the order of the tensor's indices.
inline constexpr std::int64_t kBlock = 256;
constexpr std::int64_t blocks_of(std::int64_t elements) { return (elements + kBlock - 1) / kBlock; }

// Properties of run-time types packed into constants. Device code can index the list only with a constant: otherwise
// nvcc replaces the access with a trap, and inside a constexpr function it does not warn.
constexpr unsigned types_of(CodecKind kind) {
  unsigned bits = 0;
  for (int i = 0; i < kDTypeCount; ++i) bits |= static_cast<unsigned>(kDTypes[i].kind == kind) << i;
  return bits;
}
constexpr std::uint64_t bytes_of_random_bits() {
  std::uint64_t bytes = 0;
  for (int i = 0; i < kDTypeCount; ++i) bytes |= static_cast<std::uint64_t>(kDTypes[i].random_bits) << (8 * i);
  return bytes;
}
inline constexpr unsigned kBlockedTypes = types_of(CodecKind::kBlocked);
inline constexpr std::uint64_t kRandomBitsOf = bytes_of_random_bits();
static_assert(kDTypeCount <= 8);

constexpr const DTypeInfo& info(DType dtype) { return kDTypes[static_cast<int>(dtype)]; }
constexpr const char* dtype_name(DType dtype) { return info(dtype).name; }
constexpr std::int64_t item_size(DType dtype) { return info(dtype).item_size; }
constexpr Compute compute_of(DType dtype) { return info(dtype).compute; }
constexpr int random_bits(DType dtype) {
  return static_cast<int>(kRandomBitsOf >> (8 * static_cast<int>(dtype)) & 0xff);
}
constexpr bool has_scales(DType dtype) { return (kBlockedTypes >> static_cast<int>(dtype) & 1) != 0; }
constexpr bool may_be(DType dtype, unsigned role) { return (info(dtype).roles & role) != 0; }

// The type that is as it is computed in, and whether a stream's is that of its tensor.
constexpr DType native_of(Compute compute) { return compute == Compute::kDouble ? DType::kFloat64 : DType::kFloat32; }
constexpr bool is_native(DType dtype, Compute compute) { return dtype == native_of(compute); }

// Whether a stream of a type is rounded stochastically where steps are `asked` to: codes with scales always are.
constexpr bool is_stochastic(DType dtype, bool asked) { return has_scales(dtype) || (asked && random_bits(dtype) > 0); }

}  // namespace gradstep
