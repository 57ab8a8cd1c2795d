#pragma once

#include "codecs/codec.h"

namespace gradstep::codecs {

// Storage that is a compute type: where it is the tensor's, a kernel works on it where it lies.
struct Float32 {
  using Storage = float;
  static constexpr const char* kName = "float32";
  static constexpr CodecKind kKind = CodecKind::kNative;
  static constexpr unsigned kRoles = kAsParameter | kAsGradient | kAsState | kAsCopy | kAsAverage;
  static constexpr int kRandomBits = 0;
};

struct Float64 {
  using Storage = double;
  static constexpr const char* kName = "float64";
  static constexpr CodecKind kKind = CodecKind::kNative;
  static constexpr unsigned kRoles = kAsParameter | kAsGradient | kAsState | kAsCopy | kAsAverage;
  static constexpr int kRandomBits = 0;
};

}  // namespace gradstep::codecs
