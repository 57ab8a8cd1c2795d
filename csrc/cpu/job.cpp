#include "cpu/job.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

namespace gradstep::cpu {
namespace {

constexpr std::int64_t kTile = 512;  // five streams of doubles: 20 KB, within every L1

constexpr int kMaxRank = 64;  // NumPy's

// The square of a gradient from here on is normal, also where a moment takes no more than a thousandth of it.
template <class T>
constexpr double kLeastGradient = sizeof(T) == sizeof(float) ? 0x1p-56 : 0x1p-500;

// memcpy of at least four bytes. A short row is moved by its first and its last few bytes, which may overlap: cheaper
// than a call.
inline void move_row(std::byte* to, const std::byte* from, std::size_t bytes) {
  const auto by = [&](auto width) {
    for (std::size_t i = 0; i + width < bytes; i += width) std::memcpy(to + i, from + i, width);
    std::memcpy(to + bytes - width, from + bytes - width, width);
  };
  if (bytes > 512) {
    std::memcpy(to, from, bytes);
  } else if (bytes >= 16) {
    by(std::integral_constant<std::size_t, 16>());
  } else if (bytes >= 8) {
    by(std::integral_constant<std::size_t, 8>());
  } else {
    by(std::integral_constant<std::size_t, 4>());
  }
}

// Moves elements [begin, end) of a strided stream into a tile, or back, row by row: a row is a run along the last axis.
template <std::size_t kSize, bool kGather>
void move(const Layout& layout, int stream, std::byte* data, std::int64_t begin, std::int64_t end, std::byte* tile) {
  constexpr auto kStep = static_cast<std::int64_t>(kSize);
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
    if (step == kStep) {
      move_row(kGather ? tile : first, kGather ? first : tile, static_cast<std::size_t>(count) * kSize);
    } else {
      for (std::int64_t i = 0; i < count; ++i) {
        std::byte *const in_tile = tile + i * kStep, *const in_place = first + i * step;
        std::memcpy(kGather ? in_tile : in_place, kGather ? in_place : in_tile, kSize);  // it need not be aligned
      }
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

template <class T>
void run_tiles(const Job& job, std::int64_t begin, std::int64_t end) {
  const Update& update = *job.update;
  const auto strided = [&](int s) { return job.strided != nullptr && !job.strided->strides[s].empty(); };
  alignas(64) T tiles[kMaxStreams][kTile];
  for (; begin < end; begin += kTile) {
    const std::int64_t stop = std::min(begin + kTile, end), size = stop - begin;
    std::byte* streams[kMaxStreams] = {};
    for (int s = 0; s < kMaxStreams; ++s) {
      if (job.streams[s] == nullptr) continue;
      auto* const tile = reinterpret_cast<std::byte*>(tiles[s]);
      streams[s] = job.streams[s] + begin * static_cast<std::int64_t>(sizeof(T));
      if (strided(s)) {
        move<sizeof(T), true>(*job.strided, s, job.streams[s], begin, stop, tile);
        streams[s] = tile;
      } else if (s == kGradient && update.flush != nullptr) {
        std::memcpy(tile, streams[s], static_cast<std::size_t>(size) * sizeof(T));
        streams[s] = tile;
      }
    }
    if (update.flush != nullptr) update.flush(streams[kGradient], size, kLeastGradient<T>);
    update.kernel(update.element, streams, 0, size);
    for (int s = 0; s < kMaxStreams; ++s) {
      if (s == kGradient || streams[s] == nullptr) continue;
      if (s > kGradient && update.flush != nullptr) update.flush(streams[s], size, std::numeric_limits<T>::min());
      if (strided(s)) move<sizeof(T), false>(*job.strided, s, job.streams[s], begin, stop, streams[s]);
    }
  }
}

}  // namespace

void run_tiles(const Job& job, std::int64_t begin, std::int64_t end) {
  return job.update->compute == Compute::kDouble ? run_tiles<double>(job, begin, end)
                                                 : run_tiles<float>(job, begin, end);
}

}  // namespace gradstep::cpu
