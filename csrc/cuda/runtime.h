#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

// As much of CUDA's runtime as the host side needs, without its headers. What fails throws std::runtime_error with
// CUDA's words for it.
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

// Makes a device the current one of this thread while it lives; of -1, leaves it to the thread.
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
// At once: what is captured meanwhile does not hold the copy.
void copy_to_device(void* to, const void* from, std::size_t bytes);

// The device in whose memory a pointer lies; -1: in none's.
int device_of(const void* pointer);

// How many devices there are. Throws where there is no driver, or one that is too old.
int device_count();

struct Versions {
  int runtime, driver;  // as 1000 * major + 10 * minor; of no driver, 0
};
Versions versions();

}  // namespace gradstep::cuda
