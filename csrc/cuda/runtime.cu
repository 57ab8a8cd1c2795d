#include "cuda/runtime.h"

#include <cuda_runtime.h>

#include "cuda/check.h"

namespace gradstep::cuda {

Memory::Memory(std::size_t bytes) {
  const Relaxed relaxed;
  void* data = nullptr;
  check(cudaMalloc(&data, bytes), "allocating a step's tables");
  data_ = static_cast<std::byte*>(data);
}

// Waits for kernels that still read the memory. At process exit the driver may already be unloaded.
Memory::~Memory() {
  const Relaxed relaxed;
  if (data_ != nullptr && cudaFree(data_) != cudaSuccess) cudaGetLastError();
}

OnDevice::OnDevice(int device) {
  check(cudaGetDevice(&before_), "initialization");
  if (device < 0 || before_ == device) return;
  check(cudaSetDevice(device), "selecting a device");
  changed_ = true;
}

OnDevice::~OnDevice() {
  if (changed_) cudaSetDevice(before_);
}

bool is_capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status), "querying whether a stream is captured");
  return status != cudaStreamCaptureStatusNone;
}

void wait_for_device() { check(cudaDeviceSynchronize(), "a step or other work on the device"); }

void copy_to_host(void* to, const void* from, std::size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost), "copying a step's state");
}

void copy_to_device(void* to, const void* from, std::size_t bytes) {
  const Relaxed relaxed;
  cudaStream_t stream;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "creating a stream");
  const cudaError_t copied = cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream);
  const cudaError_t waited = cudaStreamSynchronize(stream);
  cudaStreamDestroy(stream);
  check(copied, "copying a step's tables");
  check(waited, "copying a step's tables");
}

int device_of(const void* pointer) {
  cudaPointerAttributes about{};
  check(cudaPointerGetAttributes(&about, pointer), "querying where an array is");
  return about.type == cudaMemoryTypeDevice || about.type == cudaMemoryTypeManaged ? about.device : -1;
}

int device_count() {
  int count = 0;
  check(cudaGetDeviceCount(&count), "counting devices");
  return count;
}

Versions versions() {
  Versions found{};
  check(cudaRuntimeGetVersion(&found.runtime), "querying the runtime's version");
  check(cudaDriverGetVersion(&found.driver), "querying the driver's version");
  return found;
}

}  // namespace gradstep::cuda
