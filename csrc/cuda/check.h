#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace gradstep::cuda {

inline const char* description_of(cudaError_t error) {
  int driver = 1;
  const bool none = error == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0;
  return none ? "there is no NVIDIA driver" : cudaGetErrorString(error);
}

// Throws std::runtime_error with `what` and CUDA's description of the error, unless the call succeeded.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears the error, which later calls would return again
  throw std::runtime_error(std::string("CUDA: ") + what + " failed: " + description_of(error));
}

// Relaxes the thread's capture mode, so that CUDA does not reject calls such as cudaMalloc while a stream is captured.
// Calls made meanwhile must not touch streams of others.
class Relaxed {
 public:
  Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  Relaxed(const Relaxed&) = delete;
  Relaxed& operator=(const Relaxed&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Makes the driver load a kernel now. By default it loads a kernel at its first launch, which is not allowed while a
// stream is captured.
template <class Kernel>
void load(Kernel* kernel) {
  const Relaxed relaxed;
  cudaFuncAttributes about;
  check(cudaFuncGetAttributes(&about, kernel), "loading a kernel");
}

template <class Args>
void start(void (*kernel)(Args), Args& args, std::uint32_t blocks, int threads, void* stream, const char* what) {
  void* parameters[] = {&args};
  check(cudaLaunchKernel(kernel, dim3(blocks), dim3(static_cast<unsigned>(threads)), parameters, 0,
                         static_cast<cudaStream_t>(stream)),
        what);
}

}  // namespace gradstep::cuda
