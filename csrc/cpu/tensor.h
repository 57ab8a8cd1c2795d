#pragma once

#include <cstddef>
#include <cstdint>

#include "codecs/all.h"
#include "cpu/kernel.h"

namespace gradstep::cpu {

inline constexpr int kMaxStreams = 2 + rules::kMaxStates;  // parameter, gradient, states

// Where one array of a tensor lies. Its elements are walked in the order of the tensor's shape, last axis fastest.
struct Stream {
  // Null: this state is not kept.
  std::byte* data = nullptr;
  // Bytes from one element to the next along each axis; null: packed and aligned.
  const std::int64_t* strides = nullptr;
};

// One tensor's update, ready to run.
struct Tensor {
  Kernel kernel = nullptr;
  const void* element = nullptr;  // what the kernel was compiled for, with this step's scalars
  DType dtype = DType::kFloat32;
  int rank = 0;
  const std::int64_t* shape = nullptr;  // looked at only where a stream has strides
  bool packed = true;                   // every stream is
  Stream streams[kMaxStreams];
};

// Updates elements [begin, end) of a tensor. Streams with strides pass through a tile in L1: a gather before, a scatter
// after, of these elements and of no byte between them.
void update(const Tensor& tensor, std::int64_t begin, std::int64_t end);

}  // namespace gradstep::cpu
