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

// Walks the rows of elements [begin, end): runs along the last axis. visit(column, count) is called for each while
// `rows[k]` stands at the row of stream `which[k]`; at first it stands at the stream's.
template <class Visit>
GS_INLINE void each_row(const Layout& layout, const int* which, int streams, std::byte** rows, std::int64_t begin,
                        std::int64_t end, const Visit& visit) {
  const std::int64_t* const shape = layout.shape.data();
  const int last = static_cast<int>(layout.shape.size()) - 1;
  const auto move_rows = [&](int axis, std::int64_t by) {
    for (int k = 0; k < streams; ++k) rows[k] += by * layout.strides[which[k]][static_cast<std::size_t>(axis)];
  };
  std::int64_t index[kMaxRank];  // of the row
  std::int64_t rest = begin / shape[last], column = begin % shape[last];
  for (int axis = last - 1; axis >= 0; --axis) {
    index[axis] = rest % shape[axis];
    rest /= shape[axis];
    move_rows(axis, index[axis]);
  }
  for (std::int64_t left = end - begin; left > 0; column = 0) {
    const std::int64_t count = std::min(left, shape[last] - column);
    visit(column, count);
    left -= count;
    for (int axis = last - 1; axis >= 0; --axis) {
      move_rows(axis, 1);
      if (++index[axis] < shape[axis]) break;
      move_rows(axis, -shape[axis]);
      index[axis] = 0;
    }
  }
}

// Moves elements [begin, end) of a strided stream into a tile, or back.
template <std::size_t kSize, bool kGather>
void move(const Layout& layout, int stream, std::byte* data, std::int64_t begin, std::int64_t end, std::byte* tile) {
  constexpr auto kStep = static_cast<std::int64_t>(kSize);
  const std::int64_t step = layout.strides[stream].back();
  each_row(layout, &stream, 1, &data, begin, end, [&](std::int64_t column, std::int64_t count) {
    std::byte* const first = data + column * step;
    if (step == kStep) {
      move_row(kGather ? tile : first, kGather ? first : tile, static_cast<std::size_t>(count) * kSize);
    } else {
      for (std::int64_t i = 0; i < count; ++i) {
        std::byte *const in_tile = tile + i * kStep, *const in_place = first + i * step;
        std::memcpy(kGather ? in_tile : in_place, kGather ? in_place : in_tile, kSize);  // it need not be aligned
      }
    }
    tile += count * kStep;
  });
}

// Whether every row of a strided stream is one that a kernel can work on where it lies.
bool has_rows(const std::vector<std::int64_t>& strides, const std::byte* data, std::int64_t size) {
  const auto aligned = [=](std::int64_t stride) { return stride % size == 0; };
  return strides.back() == size && std::all_of(strides.begin(), strides.end(), aligned) &&
         reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(size) == 0;
}

// Runs the kernel on row after row, if the rows are long enough to be worth a call, and can be; whether it did.
template <class T>
bool run_rows(const Job& job, std::int64_t begin, std::int64_t end) {
  constexpr auto kSize = static_cast<std::int64_t>(sizeof(T));
  constexpr std::int64_t kWorthACall = 32;
  if (job.strided == nullptr || job.update->flush != nullptr || job.strided->shape.back() < kWorthACall) return false;
  int which[kMaxStreams], strided = 0;
  std::byte *rows[kMaxStreams], *streams[kMaxStreams] = {};
  for (int s = 0; s < kMaxStreams; ++s) {
    if (job.streams[s] == nullptr) continue;
    streams[s] = job.streams[s] + begin * kSize;
    if (job.strided->strides[s].empty()) continue;
    if (!has_rows(job.strided->strides[s], job.streams[s], kSize)) return false;
    which[strided] = s;
    rows[strided++] = job.streams[s];
  }
  each_row(*job.strided, which, strided, rows, begin, end, [&](std::int64_t column, std::int64_t count) {
    for (int k = 0; k < strided; ++k) streams[which[k]] = rows[k] + column * kSize;
    job.update->kernel(job.update->element, streams, 0, count);
    for (std::byte*& stream : streams) {
      if (stream != nullptr) stream += count * kSize;
    }
  });
  return true;
}

template <class T>
void run_tiles(const Job& job, std::int64_t begin, std::int64_t end) {
  if (run_rows<T>(job, begin, end)) return;
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
