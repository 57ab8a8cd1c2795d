#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace gradstep::cuda {

// Throws std::runtime_error: `what` failed, and CUDA's words for it.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next call would meet it again
  throw std::runtime_error(std::string("CUDA: ") + what + " failed: " + cudaGetErrorString(error));
}

}  // namespace gradstep::cuda
