// An emulation, on the processor, of the part of CUDA that csrc/cuda uses, for tests without a GPU. Each thread of a
// thread block is a fiber that runs until it must wait for others; thread blocks run one after the other. Arithmetic is
// the processor's. The emulation does not test nvcc's code generation or speed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#define GRADSTEP_EMULATED

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static thread_local

struct dim3 {
  unsigned x = 1;
  explicit dim3(unsigned size) : x(size) {}
};

namespace emulated {

struct Index {
  unsigned x;
};

// The indices of the running thread and of its thread block.
inline thread_local Index thread, block;

// Barriers for all threads of the block, and of the warp.
void wait_for_block();
void wait_for_warp();

// Shares a value with the warp: returns the values of all its threads once all have called.
std::uint32_t* exchange(std::uint32_t x);

void run(unsigned blocks, unsigned threads, const std::function<void()>& kernel);

// The state of the emulated devices, and counts of the calls.
struct Machine {
  std::mutex lock;
  std::map<std::uintptr_t, std::pair<std::size_t, int>> memory;  // address: size, device
  int devices = 2;
  bool capturing = false, failing = false;
  std::vector<std::function<void()>> graph;  // the calls recorded by the last capture
  long launches = 0, allocations = 0, copies = 0, waits = 0;
  void* last_stream = nullptr;
};
inline Machine machine;
inline thread_local int device = 0;

inline void begin_capture() {
  machine.graph.clear();
  machine.capturing = true;
}
inline void end_capture() { machine.capturing = false; }
inline void replay() {
  for (const auto& launch : machine.graph) launch();
}

}  // namespace emulated

#define threadIdx (emulated::thread)
#define blockIdx (emulated::block)

inline void __syncthreads() { emulated::wait_for_block(); }
inline void __syncwarp() { emulated::wait_for_warp(); }
inline std::uint32_t __shfl_xor_sync(unsigned, std::uint32_t x, int lanes) {
  const std::uint32_t* const all = emulated::exchange(x);
  const std::uint32_t other = all[(threadIdx.x % 32) ^ static_cast<unsigned>(lanes)];
  emulated::wait_for_warp();
  return other;
}

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDevice = 101,
  cudaErrorStreamCaptureUnsupported = 900
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeRelaxed };
constexpr unsigned cudaStreamNonBlocking = 1;
using cudaStream_t = void*;
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaMemoryType { cudaMemoryTypeUnregistered, cudaMemoryTypeHost, cudaMemoryTypeDevice, cudaMemoryTypeManaged };
struct cudaPointerAttributes {
  cudaMemoryType type;
  int device;
};

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidDevice ? "invalid device ordinal" : "an emulated error";
}

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = emulated::machine.devices;
  return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = emulated::device;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= emulated::machine.devices) return cudaErrorInvalidDevice;
  emulated::device = device;
  return cudaSuccess;
}
inline cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

inline cudaError_t cudaMalloc(void** data, std::size_t size) {
  *data = std::aligned_alloc(256, (size + 256) / 256 * 256);
  if (*data == nullptr) return cudaErrorMemoryAllocation;
  const std::lock_guard<std::mutex> locked(emulated::machine.lock);
  emulated::machine.memory[reinterpret_cast<std::uintptr_t>(*data)] = {size, emulated::device};
  ++emulated::machine.allocations;
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* data) {
  const std::lock_guard<std::mutex> locked(emulated::machine.lock);
  if (emulated::machine.memory.erase(reinterpret_cast<std::uintptr_t>(data)) == 0) return cudaErrorInvalidValue;
  std::free(data);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t size, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, size);
  ++emulated::machine.copies;
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t size, cudaMemcpyKind kind) {
  if (emulated::machine.capturing) return cudaErrorStreamCaptureUnsupported;
  return cudaMemcpyAsync(to, from, size, kind, nullptr);
}
inline cudaError_t cudaDeviceSynchronize() {
  ++emulated::machine.waits;
  return emulated::machine.capturing ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t*, unsigned) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
struct cudaFuncAttributes {};
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel*) {
  return cudaSuccess;
}
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* about, const void* pointer) {
  const std::lock_guard<std::mutex> locked(emulated::machine.lock);
  *about = {cudaMemoryTypeUnregistered, -1};
  auto after = emulated::machine.memory.upper_bound(reinterpret_cast<std::uintptr_t>(pointer));
  if (after == emulated::machine.memory.begin()) return cudaSuccess;
  const auto& [begin, block] = *--after;
  if (reinterpret_cast<std::uintptr_t>(pointer) < begin + block.first) *about = {cudaMemoryTypeDevice, block.second};
  return cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = emulated::machine.capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

template <class Args>
cudaError_t cudaLaunchKernel(void (*kernel)(Args), dim3 blocks, dim3 threads, void** parameters, std::size_t,
                             cudaStream_t stream) {
  if (emulated::machine.failing) return cudaErrorInvalidValue;
  const auto run = [=, args = *static_cast<const Args*>(parameters[0])] {
    ++emulated::machine.launches;
    emulated::machine.last_stream = stream;
    emulated::run(blocks.x, threads.x, [&] { kernel(args); });
  };
  if (emulated::machine.capturing) {
    emulated::machine.graph.emplace_back(run);
  } else {
    run();
  }
  return cudaSuccess;
}
