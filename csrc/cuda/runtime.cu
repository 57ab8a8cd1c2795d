#include "cuda/runtime.h"

#include <cuda_runtime.h>

#include "cuda/check.h"

namespace gradstep::cuda {

Memory::Memory(std::size_t bytes) {
  const Relaxed relaxed;
  void* data = nullptr;
  check(cudaMalloc(&data, bytes), "the allocation of a step's tables");
  data_ = static_cast<std::byte*>(data);
}

// Waits for kernels that still read it. At the end of the process the driver may be gone before.
Memory::~Memory() {
  const Relaxed relaxed;
  if (data_ != nullptr && cudaFree(data_) != cudaSuccess) cudaGetLastError();
}

OnDevice::OnDevice(int device) {
  check(cudaGetDevice(&before_), "the first call");
  if (device < 0 || before_ == device) return;
  check(cudaSetDevice(device), "the choice of a device");
  changed_ = true;
}

OnDevice::~OnDevice() {
  if (changed_) cudaSetDevice(before_);
}

bool is_capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status), "the question whether a stream is captured");
  return status != cudaStreamCaptureStatusNone;
}

void wait_for_device() { check(cudaDeviceSynchronize(), "a step, or what else the device had to do,"); }

void copy_to_host(void* to, const void* from, std::size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "the copy of what a step keeps");
}

void copy_to_device(void* to, const void* from, std::size_t bytes) {
  const Relaxed relaxed;
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "the creation of a stream");
  const cudaError_t copied = cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream);
  const cudaError_t waited = cudaStreamSynchronize(stream);
  cudaStreamDestroy(stream);
  check(copied, "the copy of a step's tables");
  check(waited, "the copy of a step's tables");
}

int device_of(const void* pointer) {
  cudaPointerAttributes about{};
  check(cudaPointerGetAttributes(&about, pointer), "the question where an array is");
  return about.type == cudaMemoryTypeDevice || about.type == cudaMemoryTypeManaged ? about.device : -1;
}

int device_count() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "the search for devices");
  return count;
}

Versions versions() {
  Versions found{};
  check(cudaRuntimeGetVersion(&found.runtime), "the question for its version");
  check(cudaDriverGetVersion(&found.driver), "the question for the driver's version");
  return found;
}

}  // namespace gradstep::cuda
