#include "cpu/job.h"

#include <algorithm>
#include <cstring>

namespace gradstep::cpu {
namespace {

constexpr std::int64_t kTile = 512;  // five streams of doubles: 20 KB, within every L1

constexpr int kMaxRank = 64;  // NumPy's

// Moves elements [begin, end) of a strided stream into a tile, or back, row by row: a row is a run along the last axis.
template <std::size_t kSize, bool kGather>
void move(const Layout& layout, int stream, std::byte* data, std::int64_t begin, std::int64_t end, std::byte* tile) {
  constexpr auto kStep = static_cast<std::int64_t>(kSize);
  constexpr std::int64_t kLongRow = 16;  // from here on a call of memcpy is worth its price
  const auto copy = [](std::byte* in_tile, std::byte* in_place, std::size_t bytes) {
    std::memcpy(kGather ? in_tile : in_place, kGather ? in_place : in_tile, bytes);  // elements need not be aligned
  };
  const std::int64_t* const shape = layout.shape.data();
  const std::int64_t* const strides = layout.strides[stream].data();
  const int last = static_cast<int>(layout.shape.size()) - 1;
  const std::int64_t length = shape[last], step = strides[last];

  std::int64_t index[kMaxRank];  // of the row
  std::byte* row = data;
  std::int64_t rest = begin / length, column = begin % length;
  for (int axis = last - 1; axis >= 0; --axis) {
    index[axis] = rest % shape[axis];
    rest /= shape[axis];
    row += index[axis] * strides[axis];
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
      row += strides[axis];
      if (++index[axis] < shape[axis]) break;
      row -= shape[axis] * strides[axis];
      index[axis] = 0;
    }
  }
}

template <std::size_t kSize>
void run_tiles(const Job& job, std::int64_t begin, std::int64_t end) {
  constexpr auto kStep = static_cast<std::int64_t>(kSize);
  const Layout& layout = *job.strided;
  alignas(64) std::byte buffer[kMaxStreams][kTile * kSize];
  for (; begin < end; begin += kTile) {
    const std::int64_t stop = std::min(begin + kTile, end);
    std::byte* streams[kMaxStreams];
    for (int s = 0; s < kMaxStreams; ++s) {
      const bool strided = !layout.strides[s].empty();
      if (strided) move<kSize, true>(layout, s, job.streams[s], begin, stop, buffer[s]);
      const bool packed = !strided && job.streams[s] != nullptr;
      streams[s] = strided ? buffer[s] : packed ? job.streams[s] + begin * kStep : nullptr;
    }
    job.kernel(job.element, streams, 0, stop - begin);
    for (int s = 0; s < kMaxStreams; ++s) {
      const bool written = s != 1;  // the gradient is only read
      if (written && !layout.strides[s].empty()) {
        move<kSize, false>(layout, s, job.streams[s], begin, stop, buffer[s]);
      }
    }
  }
}

}  // namespace

void run_strided(const Job& job, std::int64_t begin, std::int64_t end) {
  return job.strided->item_size == 8 ? run_tiles<8>(job, begin, end) : run_tiles<4>(job, begin, end);
}

}  // namespace gradstep::cpu
