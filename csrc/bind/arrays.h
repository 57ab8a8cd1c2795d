#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <tuple>

#include "codecs/all.h"
#include "step/array.h"
#include "step/stepper.h"

// What is common to the arrays of all libraries.
namespace gradstep::bind {

using step::Array;
using step::WrongType;

enum class Role { kParameter, kGradient, kState };

// Two arrays whose extents meet, and what to say if they share memory.
using Suspect = std::tuple<pybind11::object, pybind11::object, std::string>;

// The types of parameters and gradients come first, then those of codes, which are nothing without their scales.
inline constexpr int kArrayTypes = static_cast<int>(DType::kQ8Signed);

inline std::string supported() {
  std::string names;
  for (int i = 0; i < kArrayTypes; ++i) names += (i == 0 ? "" : ", ") + std::string(kDTypes[i].name);
  return names;
}

}  // namespace gradstep::bind
