#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <tuple>

#include "codecs/all.h"
#include "step/array.h"
#include "step/stepper.h"

// Common to the arrays of all libraries.
namespace gradstep::bind {

using step::Array;
using step::WrongType;

enum class Role { kParameter, kGradient, kState };

// Two arrays whose address ranges intersect, and the error message if they share memory.
using PossibleOverlap = std::tuple<pybind11::object, pybind11::object, std::string>;

// q8 codes are supported only in places where their scales are known: int8 and uint8 are not numbers elsewhere.
constexpr bool is_supported(DType dtype, bool codes) { return codes || !has_scales(dtype); }

inline std::string supported() {
  std::string names;
  for (const DTypeInfo& info : kDTypes) {
    if (info.kind != CodecKind::kBlocked) names += (names.empty() ? "" : ", ") + std::string(info.name);
  }
  return names;
}

}  // namespace gradstep::bind
