#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "codecs/all.h"
#include "codecs/noise.h"
#include "cuda/args.h"

// How a lane loads and stores its part of a block of elements.
namespace gradstep::cuda {

#define GS_DEVICE __device__ __forceinline__

// The index of a thread within its warp, and of its warp within the thread block.
GS_DEVICE int lane_of_thread() { return static_cast<int>(threadIdx.x % kWarp); }
GS_DEVICE int warp_of_thread() { return static_cast<int>(threadIdx.x / kWarp); }

// Marks a pointer as global: the compiler cannot infer the address space of a pointer that was itself loaded.
template <class T>
GS_DEVICE T* global(T* pointer) {
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

// The largest value of a warp, returned in every lane.
GS_DEVICE std::uint32_t warp_max(std::uint32_t x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_max_sync(0xffffffffu, x);
#else
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    const std::uint32_t other = __shfl_xor_sync(0xffffffffu, x, lanes);
    x = other > x ? other : x;
  }
  return x;
#endif
}

// The index of the first axis, from that in the traversal.
GS_DEVICE std::int64_t row_of(const TensorDesc& desc, int s, std::int64_t index) {
  return desc.rows == nullptr || s == kGradient ? index : global(desc.rows)[index];
}

// The byte offset of an element in a stream.
GS_DEVICE std::int64_t offset(const TensorDesc& desc, int s, std::int64_t index) {
  if (!desc.strided[s]) return index * desc.item_sizes[s];
  const auto rank = static_cast<int>(*global(desc.strided_layout));
  const std::int64_t *const shape = global(desc.strided_layout) + 1, *const strides = shape + (1 + s) * rank;
  std::int64_t bytes = 0;
#pragma unroll 1
  for (int axis = rank - 1; axis > 0; --axis) {
    const std::int64_t outer = index / shape[axis];
    bytes += (index - outer * shape[axis]) * strides[axis];
    index = outer;
  }
  return bytes + row_of(desc, s, index) * strides[0];
}

// The index in the whole tensor of an element of an update.
GS_DEVICE std::int64_t place_of(const TensorDesc& desc, std::int64_t index) {
  if (desc.rows == nullptr) return index;
  const std::int64_t row = index / desc.row_length;
  return index + (global(desc.rows)[row] - row) * desc.row_length;
}

// Items that one instruction loads or stores.
template <class Item, int kCount>
struct alignas(sizeof(Item) * kCount) Pack {
  Item items[kCount];
};

// A lane's elements of a block: vectors of as many consecutive elements as fill 16 bytes in the compute type, one
// vector per warp-wide access, so that each access of a warp is contiguous.
template <class T>
struct LaneSlice {
  static constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  static constexpr int kVectors = kItems / kVector;

  // The index in the block of a lane's item.
  GS_DEVICE static int place(int lane, int item) { return (item / kVector * kWarp + lane) * kVector + item % kVector; }
};

// A lane's stored items of a stream, `kBytes` each, packed into words. T is the compute type.
template <class T, int kBytes, class Word = std::uint32_t>
struct Raw {
  static constexpr int kAtOnce = LaneSlice<T>::kVector * kBytes / static_cast<int>(sizeof(Word));  // words
  static constexpr int kPerWord = static_cast<int>(sizeof(Word)) / kBytes;
  using Moved = Pack<Word, kAtOnce>;

  GS_DEVICE static bool aligned(const void* block) {
    return reinterpret_cast<std::uintptr_t>(block) % alignof(Moved) == 0;
  }

  GS_DEVICE static void load(const void* block, int lane, Word (&words)[kItems]) {
#pragma unroll
    for (int v = 0; v < LaneSlice<T>::kVectors; ++v) {
      const Moved moved = static_cast<const Moved*>(block)[v * kWarp + lane];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) words[v * kAtOnce + k] = moved.items[k];
    }
  }

  GS_DEVICE static void store(void* block, int lane, const Word (&words)[kItems]) {
#pragma unroll
    for (int v = 0; v < LaneSlice<T>::kVectors; ++v) {
      Moved moved;
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) moved.items[k] = words[v * kAtOnce + k];
      static_cast<Moved*>(block)[v * kWarp + lane] = moved;
    }
  }

  // get() returns the bits of an item; put() inserts bits into words that were zero.
  GS_DEVICE static Word get(const Word (&words)[kItems], int item) {
    return words[item / kPerWord] >> (8 * kBytes * (item % kPerWord));
  }
  GS_DEVICE static void put(Word (&words)[kItems], int item, Word bits) {
    words[item / kPerWord] |= bits << (8 * kBytes * (item % kPerWord));
  }
};

}  // namespace gradstep::cuda
