#pragma once

#include <cstdint>

namespace gradstep {

// The types that rules compute in, whatever a tensor is stored as.
enum class Compute : std::uint8_t { kFloat, kDouble };

template <class T>
inline constexpr Compute kComputeOf = sizeof(T) == sizeof(double) ? Compute::kDouble : Compute::kFloat;

constexpr std::int64_t size_of(Compute compute) { return compute == Compute::kDouble ? sizeof(double) : sizeof(float); }

}  // namespace gradstep
