#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

// The part of CUDA's runtime API that host code needs, without CUDA's headers. Failures throw std::runtime_error with
// CUDA's description.
namespace gradstep::cuda {

// Device memory.
class Memory {
 public:
  Memory() = default;
  explicit Memory(std::size_t bytes);
  Memory(Memory&& other) noexcept { *this = std::move(other); }
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~Memory();

  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
};

// Makes a device the thread's current one for the lifetime of the object; -1 leaves the current device.
class OnDevice {
 public:
  explicit OnDevice(int device);
  ~OnDevice();
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

bool is_capturing(void* stream);

void wait_for_device();
void copy_to_host(void* to, const void* from, std::size_t bytes);
// Copies at once, on a separate stream, so that a stream capture does not record the copy.
void copy_to_device(void* to, const void* from, std::size_t bytes);

// The device in whose memory a pointer is; -1 if in no device's.
int device_of(const void* pointer);

// The number of devices. Throws if there is no driver or if the driver is too old.
int device_count();

struct Versions {
  int runtime, driver;  // 1000 * major + 10 * minor; 0 if there is no driver
};
Versions versions();

}  // namespace gradstep::cuda
