#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace gradstep::cuda {

inline const char* words_for(cudaError_t error) {
  int driver = 1;
  const bool none = error == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0;
  return none ? "there is no NVIDIA driver" : cudaGetErrorString(error);
}

// Throws std::runtime_error: `what` failed, and CUDA's words for it.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next call would meet it again
  throw std::runtime_error(std::string("CUDA: ") + what + " failed: " + words_for(error));
}

// While a thread captures, CUDA refuses what could harm the capture. What is done while this lives touches no stream of
// others.
class Relaxed {
 public:
  Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~Relaxed() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  Relaxed(const Relaxed&) = delete;
  Relaxed& operator=(const Relaxed&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// Has the driver load a kernel, which it else does at its first launch, and may not do while a stream is captured.
template <class Kernel>
void load(Kernel* kernel) {
  const Relaxed relaxed;
  cudaFuncAttributes about;
  check(cudaFuncGetAttributes(&about, kernel), "the loading of a kernel");
}

template <class Args>
void start(void (*kernel)(Args), Args& args, std::uint32_t blocks, int threads, void* stream, const char* what) {
  void* parameters[] = {&args};
  check(cudaLaunchKernel(kernel, dim3(blocks), dim3(static_cast<unsigned>(threads)), parameters, 0,
                         static_cast<cudaStream_t>(stream)),
        what);
}

}  // namespace gradstep::cuda
