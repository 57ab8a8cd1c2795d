#pragma once

#include <cstddef>

#include "rules/all.h"

namespace gradstep::cpu {

// A run of elements in the compute type, each stream packed and apart from the others.
struct Tile {
  std::size_t size;
  void* param;
  const void* grad;
  void* states[rules::kMaxStates];  // those that are not kept: null
};

// Updates a tile; `element` is the rules::Element that the kernel was compiled for.
using Kernel = void (*)(const Tile& tile, const void* element);

}  // namespace gradstep::cpu
