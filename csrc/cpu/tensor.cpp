#include "cpu/tensor.h"

#include <algorithm>
#include <cstring>

namespace gradstep::cpu {
namespace {

constexpr std::int64_t kTile = 512;  // five streams of doubles: 20 KB, within every L1

constexpr int kMaxRank = 64;  // NumPy's

// Moves elements [begin, end) of a strided stream into a tile, or back, row by row: a row is a run along the last axis.
template <std::size_t kSize, bool kGather>
void move(const Tensor& tensor, const Stream& stream, std::int64_t begin, std::int64_t end, std::byte* tile) {
  constexpr auto kStep = static_cast<std::int64_t>(kSize);
  constexpr std::int64_t kLongRow = 16;  // from here on a call of memcpy is worth its price
  const auto copy = [](std::byte* in_tile, std::byte* in_place, std::size_t bytes) {
    std::memcpy(kGather ? in_tile : in_place, kGather ? in_place : in_tile, bytes);  // elements need not be aligned
  };
  const int last = tensor.rank - 1;
  const std::int64_t length = tensor.shape[last], step = stream.strides[last];

  std::int64_t index[kMaxRank];  // of the row
  std::byte* row = stream.data;
  std::int64_t rest = begin / length, column = begin % length;
  for (int axis = last - 1; axis >= 0; --axis) {
    index[axis] = rest % tensor.shape[axis];
    rest /= tensor.shape[axis];
    row += index[axis] * stream.strides[axis];
  }
  for (std::int64_t left = end - begin; left > 0; column = 0) {
    const std::int64_t count = std::min(left, length - column);
    std::byte* const first = row + column * step;
    if (step == kStep && count >= kLongRow) {
      copy(tile, first, static_cast<std::size_t>(count) * kSize);
    } else {
      for (std::int64_t i = 0; i < count; ++i) copy(tile + i * kStep, first + i * step, kSize);
    }
    tile += count * kStep;
    left -= count;
    for (int axis = last - 1; axis >= 0; --axis) {
      row += stream.strides[axis];
      if (++index[axis] < tensor.shape[axis]) break;
      row -= tensor.shape[axis] * stream.strides[axis];
      index[axis] = 0;
    }
  }
}

Tile tile_of(std::byte* const (&data)[kMaxStreams], std::int64_t size) {
  Tile tile{static_cast<std::size_t>(size), data[0], data[1], {}};
  for (int s = 0; s < rules::kMaxStates; ++s) tile.states[s] = data[2 + s];
  return tile;
}

template <class T>
void update_tiles(const Tensor& tensor, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kSize = sizeof(T);
  alignas(64) std::byte buffer[kMaxStreams][kTile * kSize];
  for (; begin < end; begin += kTile) {
    const std::int64_t stop = std::min(begin + kTile, end);
    std::byte* data[kMaxStreams] = {};
    for (int s = 0; s < kMaxStreams; ++s) {
      const Stream& stream = tensor.streams[s];
      if (stream.data == nullptr) continue;
      data[s] = stream.strides == nullptr ? stream.data + begin * kSize : buffer[s];
      if (stream.strides != nullptr) move<sizeof(T), true>(tensor, stream, begin, stop, buffer[s]);
    }
    tensor.kernel(tile_of(data, stop - begin), tensor.element);
    for (int s = 0; s < kMaxStreams; ++s) {
      const Stream& stream = tensor.streams[s];
      const bool written = s != 1;  // the gradient is only read
      if (written && stream.data != nullptr && stream.strides != nullptr) {
        move<sizeof(T), false>(tensor, stream, begin, stop, buffer[s]);
      }
    }
  }
}

}  // namespace

void update(const Tensor& tensor, std::int64_t begin, std::int64_t end) {
  const std::int64_t size = item_size(tensor.dtype);
  if (!tensor.packed) {
    return size == 8 ? update_tiles<double>(tensor, begin, end) : update_tiles<float>(tensor, begin, end);
  }
  std::byte* data[kMaxStreams] = {};
  for (int s = 0; s < kMaxStreams; ++s) {
    if (tensor.streams[s].data != nullptr) data[s] = tensor.streams[s].data + begin * size;
  }
  tensor.kernel(tile_of(data, end - begin), tensor.element);
}

}  // namespace gradstep::cpu
