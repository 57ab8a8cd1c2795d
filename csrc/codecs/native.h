#pragma once

namespace gradstep::codecs {

// Storage that is the compute type: a kernel works on it where it lies.
struct Float32 {
  using Storage = float;
  static constexpr const char* kName = "float32";
};

struct Float64 {
  using Storage = double;
  static constexpr const char* kName = "float64";
};

}  // namespace gradstep::codecs
