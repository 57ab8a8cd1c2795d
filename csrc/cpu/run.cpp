#include "cpu/run.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>
#include <type_traits>

#include "cpu/isa.h"
#include "cpu/panel.h"
#include "cpu/tuning.h"
#include "exec/norm.h"

namespace gradstep::cpu {
namespace {

static_assert(kTile % kBlock == 0);

constexpr int kMaxRank = 64;  // NumPy's limit

// Copies a row. Copies of a constant width, the last of which may overlap the one before, are cheaper for short rows
// than a call of memcpy.
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
  } else if (bytes >= 4) {
    by(std::integral_constant<std::size_t, 4>());
  } else if (bytes >= 2) {
    by(std::integral_constant<std::size_t, 2>());
  } else {
    by(std::integral_constant<std::size_t, 1>());
  }
}

// Prefetches the lines of the first `bytes` bytes of a row.
template <bool kWritten>
GS_INLINE void prefetch_row(const std::byte* row, std::int64_t bytes) {
  const std::byte* const end = row + bytes;
  for (row -= reinterpret_cast<std::uintptr_t>(row) % kLine; row < end; row += kLine) __builtin_prefetch(row, kWritten);
}

// Visits the runs along the last axis of elements [begin, end), counted over the axes from `outer` on: calls
// visit(column, count) while `rows[k]` points to the run's row of stream `which[k]`. On entry `rows[k]` points to the
// stream's first element.
template <class Visit>
GS_INLINE void each_run(const Layout& layout, int outer, const int* which, int streams, std::byte** rows,
                        std::int64_t begin, std::int64_t end, const Visit& visit) {
  const std::int64_t* const shape = layout.shape.data();
  const int last = static_cast<int>(layout.shape.size()) - 1;
  const auto move_rows = [&](int axis, std::int64_t by) {
    for (int k = 0; k < streams; ++k) rows[k] += by * layout.strides[which[k]][static_cast<std::size_t>(axis)];
  };
  std::int64_t index[kMaxRank];  // of the row, by axis
  std::int64_t rest = begin / shape[last], column = begin % shape[last];
  for (int axis = last - 1; axis >= outer; --axis) {
    index[axis] = rest % shape[axis];
    rest /= shape[axis];
    move_rows(axis, index[axis]);
  }
  for (std::int64_t left = end - begin; left > 0; column = 0) {
    const std::int64_t count = std::min(left, shape[last] - column);
    visit(column, count);
    left -= count;
    for (int axis = last - 1; axis >= outer; --axis) {
      move_rows(axis, 1);
      if (++index[axis] < shape[axis]) break;
      move_rows(axis, -shape[axis]);
      index[axis] = 0;
    }
  }
}

// The same of a row gradient: the first axis of all streams but the gradient goes through the list of rows.
template <class Visit>
GS_INLINE void each_run_of_rows(const Layout& layout, const int* which, int streams, std::byte** rows,
                                std::int64_t begin, std::int64_t end, const Visit& visit) {
  struct Rows {
    std::byte* first;
    std::int64_t pitch, prefetched;
    bool listed;
  } of[kMaxStreams];
  for (int k = 0; k < streams; ++k) {
    const std::int64_t pitch = layout.strides[which[k]][0];
    of[k] = {rows[k], pitch, std::min(std::abs(pitch), kPrefetchedRowBytes), which[k] != kGradient};
  }
  const std::int64_t listed = layout.shape[0];
  const std::int64_t length =
      std::accumulate(layout.shape.begin() + 1, layout.shape.end(), std::int64_t{1}, std::multiplies<std::int64_t>());
  const bool flat = layout.shape.size() == 2;
  std::int64_t place = begin / length, column = begin % length;
  for (std::int64_t left = end - begin; left > 0; ++place, column = 0) {
    const std::int64_t count = std::min(left, length - column);
    const std::int64_t row = layout.rows[place], later = layout.rows[std::min(place + kPrefetchRows, listed)];
    for (int k = 0; k < streams; ++k) {
      const auto& [first, pitch, prefetched, is_listed] = of[k];
      rows[k] = first + (is_listed ? row : place) * pitch;
      if (is_listed) prefetch_row<true>(first + later * pitch, prefetched);
    }
    if (flat) {
      visit(column, count);
    } else {
      each_run(layout, 1, which, streams, rows, column, column + count, visit);
    }
    left -= count;
  }
}

template <class Visit>
GS_INLINE void each_row(const Layout& layout, const int* which, int streams, std::byte** rows, std::int64_t begin,
                        std::int64_t end, const Visit& visit) {
  layout.rows == nullptr ? each_run(layout, 0, which, streams, rows, begin, end, visit)
                         : each_run_of_rows(layout, which, streams, rows, begin, end, visit);
}

// Gathers elements [begin, end) of a strided stream into a tile, or scatters them from it.
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
        std::memcpy(kGather ? in_tile : in_place, kGather ? in_place : in_tile, kSize);  // items may be unaligned
      }
    }
    tile += count * kStep;
  });
}

using Mover = void (*)(const Layout& layout, int stream, std::byte* data, std::int64_t begin, std::int64_t end,
                       std::byte* tile);

template <bool kGather>
Mover mover_of(std::int64_t item_size) {
  switch (item_size) {
    case 1:
      return &move<1, kGather>;
    case 2:
      return &move<2, kGather>;
    case 4:
      return &move<4, kGather>;
    default:
      return &move<8, kGather>;
  }
}

// Whether a kernel can work in place on every row of a strided stream.
bool has_rows(const std::vector<std::int64_t>& strides, const std::byte* data, std::int64_t size) {
  const auto aligned = [=](std::int64_t stride) { return stride % size == 0; };
  return strides.back() == size && std::all_of(strides.begin(), strides.end(), aligned) &&
         reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(size) == 0;
}

// Runs the kernel on each row if a kernel can work on rows in place and they are long enough to be worth a call.
// Returns whether it did.
template <class T>
bool run_rows(const TensorJob& job, Kernel kernel, std::int64_t begin, std::int64_t end, bool prefetches) {
  constexpr auto kSize = static_cast<std::int64_t>(sizeof(T));
  const Layout* const layout = job.layout;
  if (layout->shape.back() < kRowWorthACall || !layout->native || layout->has_more) return false;
  int which[kKernelStreams], strided = 0, others[kKernelStreams], contiguous = 0;
  std::byte *rows[kKernelStreams], *streams[kKernelStreams] = {};
  for (int s = 0; s < kKernelStreams; ++s) {
    if (job.streams[s] == nullptr) continue;
    streams[s] = job.streams[s] + begin * kSize;
    if (layout->strides[s].empty()) {
      others[contiguous++] = s;
      continue;
    }
    if (!has_rows(layout->strides[s], job.streams[s], kSize)) return false;
    which[strided] = s;
    rows[strided++] = job.streams[s];
  }
  each_row(*layout, which, strided, rows, begin, end, [&](std::int64_t column, std::int64_t count) {
    for (int k = 0; k < strided; ++k) streams[which[k]] = rows[k] + column * kSize;
    kernel(job.update->element, streams, 0, count, prefetches, nullptr);
    for (int k = 0; k < contiguous; ++k) streams[others[k]] += count * kSize;
  });
  return true;
}

// The random bits of those streams of one tensor that are rounded stochastically.
class Noises {
 public:
  explicit Noises(const TensorJob& job) {
    for (int s = 0; s < kKernelStreams; ++s) {
      const bool written = job.streams[s] != nullptr && kStreams[s].rounded;
      if (!written || !is_stochastic(job.layout->dtypes[s], job.update->stochastic)) continue;
      Noise& noise = *(of_[s] = &drawn_[s]);
      noise.seed = job.update->seed;
      noise.step = job.update->step;
      noise.tensor = job.layout->tensor;
      noise.first = job.layout->first;
      noise.stream = static_cast<std::uint32_t>(s);
      noise.bits = random_bits(job.layout->dtypes[s]);
      conversions().draw_places(noise);
    }
  }

  // Draws the groups of elements [begin, end), which lie in one span.
  void draw(std::int64_t begin, std::int64_t end) {
    for (Noise* const noise : of_) {
      if (noise != nullptr) conversions().draw_groups(*noise, noise->first + begin, noise->first + end);
    }
  }

  bool any() const {
    return std::any_of(std::begin(of_), std::end(of_), [](const Noise* noise) { return noise != nullptr; });
  }

  // Null if the stream is rounded to nearest.
  const Noise* operator[](int s) const { return of_[s]; }

 private:
  Noise* of_[kKernelStreams] = {};
  Noise drawn_[kKernelStreams];
};

// Calls f(begin, end) for each span of elements [begin, end), after drawing its random bits.
template <class F>
void each_span(Noises& noises, std::int64_t begin, std::int64_t end, const F& f) {
  while (begin < end) {
    const std::int64_t span_end = std::min(end, (begin / Noise::kSpan + 1) * Noise::kSpan);
    noises.draw(begin, span_end);
    f(begin, span_end);
    begin = span_end;
  }
}

// Calls f(begin, end, place) for each part of a row in elements [begin, end) of a row gradient, after drawing its
// random bits, which depend on its place in the whole tensor. A part fits into a tile behind the elements of its first
// group.
template <class F>
void each_row_part(const Layout& layout, Noises& noises, std::int64_t begin, std::int64_t end, const F& f) {
  std::int64_t length = 1;
  for (std::size_t axis = 1; axis < layout.shape.size(); ++axis) length *= layout.shape[axis];
  while (begin < end) {
    const std::int64_t column = begin % length, place = layout.rows[begin / length] * length + column;
    const std::int64_t in_group = place % kGroup, in_span = place % Noise::kSpan;
    const std::int64_t part_end =
        begin + std::min({end - begin, length - column, kTile - in_group, Noise::kSpan - in_span});
    noises.draw(place - in_group, place + part_end - begin);
    f(begin, part_end, place);
    begin = part_end;
  }
}

// Processes the streams of a tensor tile by tile: gathers and decodes into tiles, encodes and scatters from them. Bytes
// between the elements are not written.
template <class T>
class Tiles {
 public:
  explicit Tiles(const TensorJob& job)
      : job_(job), panel_(job.layout != nullptr && job.layout->blocks.axis >= 0 ? Panel::of_thread() : nullptr) {}

  // `place` is the index of the first element in the whole tensor.
  void run(Kernel kernel, const Noises& noises, std::int64_t begin, std::int64_t end, std::int64_t place) {
    begin_ = begin;
    size_ = end - begin;
    place_ = place;
    lead_ = place % kGroup;
    std::byte* values[kKernelStreams] = {};
    for (int s = 0; s < kKernelStreams; ++s) {
      if (job_.streams[s] != nullptr && kStreams[s].read) values[s] = load(s);
    }
    kernel(job_.update->element, values, 0, size_, false, nullptr);  // tiles are in L1
    for (int s = 0; s < kKernelStreams; ++s) {
      if (job_.streams[s] != nullptr && kStreams[s].written && kStreams[s].read) store(s, values[s], noises[s]);
      if (s == kParameter && job_.layout->has_more) values[s] = as_stored(values[s]);
    }
    if (job_.streams[kCopy] != nullptr) store(kCopy, values[kParameter], nullptr);
    if (job_.layout->average != nullptr) add_to_average(values[kParameter]);
  }

  // Averages the parameter that a kernel has updated where it lies.
  void average(std::int64_t begin, std::int64_t end) { add_to_average(parameter(begin, end)); }

  void add_squares(std::int64_t begin, std::int64_t end, double* lanes, bool prefetches) {
    const std::byte* const values = gradient(begin, end);
    add(values, lanes, prefetches && values == place(kGradient));  // a tile is in L1
  }

  // Copies the parameter's elements [begin, end).
  void copy_parameter(std::int64_t begin, std::int64_t end, T* to) {
    std::memcpy(to, parameter(begin, end), static_cast<std::size_t>(end - begin) * sizeof(T));
  }

  // Adds the squares of the parameter's elements, and of their differences from those before.
  void add_weights(std::int64_t begin, std::int64_t end, const T* before, double* weights, double* updates) {
    const std::byte* const values = parameter(begin, end);
    const auto* const after = reinterpret_cast<const T*>(values);
    T* const difference = tiles_[kGradient];
    for (std::int64_t i = 0; i < size_; ++i) difference[i] = after[i] - before[i];
    add(values, weights, false);
    add(reinterpret_cast<const std::byte*>(difference), updates, false);
  }

  // The number of gradients before the first that is not finite.
  std::int64_t count_finite(std::int64_t begin, std::int64_t end) {
    const auto* const values = reinterpret_cast<const T*>(gradient(begin, end));
    std::int64_t i = 0;
    while (i < size_ && is_finite(values[i])) ++i;
    return i;
  }

  // The gradient's elements [begin, end) as values of T.
  const std::byte* gradient(std::int64_t begin, std::int64_t end) { return values(kGradient, begin, end); }
  const std::byte* parameter(std::int64_t begin, std::int64_t end) { return values(kParameter, begin, end); }

 private:
  const std::byte* values(int s, std::int64_t begin, std::int64_t end) {
    begin_ = begin;
    size_ = end - begin;
    return load(s);
  }

  // Adds the squares of as many values as this tile has elements.
  void add(const std::byte* values, double* lanes, bool prefetches) const {
    (kCompute == Compute::kDouble ? conversions_.add_squares_doubles : conversions_.add_squares_floats)(
        values, size_, lanes, prefetches);
  }

  DType dtype(int s) const { return job_.layout == nullptr ? native_of(kCompute) : job_.layout->dtypes[s]; }
  bool strided(int s) const { return job_.layout != nullptr && !job_.layout->strides[s].empty(); }
  float* scales(int s) const { return has_scales(dtype(s)) ? job_.layout->scales[s] + place_ / kBlock : nullptr; }

  // The address of this tile's elements in a stream that is not strided.
  std::byte* place(int s) const { return data(s) + begin_ * item_size(dtype(s)); }
  std::byte* data(int s) const { return s == kAverage ? job_.layout->average : job_.streams[s]; }

  // The values of the parameter, given as they were computed, after the rounding by store(), which has just been
  // called.
  std::byte* as_stored(std::byte* values) {
    const DType type = dtype(kParameter);
    if (is_native(type, kCompute)) return values;
    T* const decoded = tiles_[kParameter] + lead_;
    const std::byte* const from = strided(kParameter) ? raw_ + lead_ * item_size(type) : place(kParameter);
    conversions_.to<T>(type).decode(from, nullptr, size_, decoded);
    return reinterpret_cast<std::byte*>(decoded);
  }

  void add_to_average(const std::byte* values) {
    const double decay = job_.update->ema;
    std::byte* const average = load(kAverage);
    conversions_.average<T>()(reinterpret_cast<T*>(average), reinterpret_cast<const T*>(values), size_,
                              static_cast<T>(decay), static_cast<T>(1 - decay));
    store(kAverage, average, nullptr);
  }

  // Returns the elements as values of the compute type, in the stream itself if it is native and not strided.
  std::byte* load(int s) {
    T* const values = tiles_[s] + lead_;
    auto* const tile = reinterpret_cast<std::byte*>(values);
    const bool native = is_native(dtype(s), kCompute);
    std::byte* from = strided(s) ? native ? tile : raw_ : place(s);
    if (strided(s)) gather(s, from);
    if (native) return from;
    conversions_.to<T>(dtype(s)).decode(from, scales(s), size_, values);
    return tile;
  }

  void store(int s, std::byte* values, const Noise* noise) {
    const bool native = is_native(dtype(s), kCompute);
    std::byte* to = !strided(s) ? place(s) : native ? values : raw_;
    if (!native) {
      // Encoding begins with a whole group.
      T* const first = reinterpret_cast<T*>(values) - lead_;
      std::fill_n(first, lead_, T(0));
      conversions_.to<T>(dtype(s)).encode(first, lead_ + size_, noise, place_ - lead_, to, scales(s));
      to += lead_ * item_size(dtype(s));
    } else if (to != values) {
      std::memcpy(to, values, static_cast<std::size_t>(size_) * sizeof(T));
    }
    if (strided(s)) move<false>(s, to);
  }

  void gather(int s, std::byte* packed) {
    if (s == kGradient && panel_ != nullptr) return panel_->gather(job_, begin_, begin_ + size_, packed);
    move<true>(s, packed);
  }

  // Gathers this tile's elements of a strided stream, or scatters them.
  template <bool kGather>
  void move(int s, std::byte* packed) {
    mover_of<kGather>(item_size(dtype(s)))(*job_.layout, s, data(s), begin_, begin_ + size_, packed);
  }

  static constexpr Compute kCompute = kComputeOf<T>;

  const TensorJob& job_;
  Panel* const panel_;  // gathers the gradient; null: tiles do
  const Conversions& conversions_ = conversions();
  std::int64_t begin_ = 0, size_ = 0;
  std::int64_t place_ = 0, lead_ = 0;  // of the first element in the whole tensor, and in its group
  alignas(64) T tiles_[kMaxStreams][kTile];
  alignas(64) std::byte raw_[kTile * sizeof(double)];  // of a stream that is both strided and stored in another type
};

template <class T>
void run_tiles(const TensorJob& job, Kernel kernel, std::int64_t begin, std::int64_t end) {
  Noises noises(job);
  Tiles<T> tiles(job);
  if (job.layout->rows != nullptr && noises.any()) {
    return each_row_part(*job.layout, noises, begin, end,
                         [&](std::int64_t first, std::int64_t last, std::int64_t place) {
                           tiles.run(kernel, noises, first, last, place);
                         });
  }
  each_span(noises, begin, end, [&](std::int64_t first, std::int64_t last) {
    for (; first < last; first += kTile) tiles.run(kernel, noises, first, std::min(first + kTile, last), first);
  });
}

// The kernel that decodes and encodes in registers for this storage combination; null if there is none.
Kernel find_stored(const TensorJob& job, const Kernels& kernels) {
  if (!job.layout->packed) return nullptr;
  for (const StoredKernel& stored : kernels.stored) {
    if (stored.storage == job.layout->storage && !(stored.to_nearest && job.update->stochastic)) return stored.kernel;
  }
  return nullptr;
}

GS_INLINE void run_registers(const TensorJob& job, Kernel kernel, std::int64_t begin, std::int64_t end,
                             bool prefetches) {
  Noises noises(job);
  StoredStreams stored{job.layout->scales, {}};
  for (int s = 0; s < kKernelStreams; ++s) stored.noise[s] = noises[s];
  if (job.layout->average == nullptr) {
    each_span(noises, begin, end, [&](std::int64_t first, std::int64_t last) {
      kernel(job.update->element, job.streams, first, last, prefetches, &stored);
    });
    return;
  }
  Tiles<float> tiles(job);
  each_span(noises, begin, end, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t tile_end; first < last; first = tile_end) {
      tile_end = std::min(first + kTile, last);
      kernel(job.update->element, job.streams, first, tile_end, prefetches, &stored);
      tiles.average(first, tile_end);
    }
  });
}

template <class T>
void run_in(const TensorJob& job, const Kernels& kernels, std::int64_t begin, std::int64_t end, bool prefetches) {
  if (run_rows<T>(job, kernels.native, begin, end, prefetches)) return;
  run_tiles<T>(job, kernels.native, begin, end);
}

// The same in the tensor's compute type.
void run_in_type(const TensorJob& job, const Kernels& kernels, std::int64_t begin, std::int64_t end, bool prefetches) {
  job.update->key.compute == Compute::kDouble ? run_in<double>(job, kernels, begin, end, prefetches)
                                              : run_in<float>(job, kernels, begin, end, prefetches);
}

template <class T>
double sum_of_squares(const TensorJob& job, std::int64_t begin, std::int64_t end, bool prefetches) {
  static_assert(kTile % kSumLanes == 0);
  alignas(64) double lanes[kSumLanes] = {};
  Tiles<T> tiles(job);
  const std::int64_t step = job.layout == nullptr ? kChunk : kTile;  // no tile is needed
  for (; begin < end; begin += step) tiles.add_squares(begin, std::min(begin + step, end), lanes, prefetches);
  return fold(lanes);
}

// Updates elements [begin, end), in the order of the indices.
void run_here(const TensorJob& job, const Kernels& kernels, std::int64_t begin, std::int64_t end, bool prefetches) {
  if (job.layout == nullptr) return run(job, kernels, begin, end, prefetches);
  if (const Kernel kernel = find_stored(job, kernels)) return run_registers(job, kernel, begin, end, prefetches);
  run_in_type(job, kernels, begin, end, prefetches);
}

// The same for one chunk, whose sums of squares it computes.
template <class T>
void measure(const TensorJob& job, const Kernels& kernels, std::int64_t begin, std::int64_t end, bool prefetches,
             const ChunkSums& sums) {
  alignas(64) double gradients[kSumLanes] = {}, updates[kSumLanes] = {}, weights[kSumLanes] = {};
  alignas(64) T before[kChunk];
  Tiles<T> tiles(job);
  const auto each_tile = [&](const auto& f) {
    for (std::int64_t first = begin; first < end; first += kTile) f(first, std::min(first + kTile, end));
  };
  each_tile([&](std::int64_t first, std::int64_t last) {
    tiles.add_squares(first, last, gradients, prefetches);
    tiles.copy_parameter(first, last, before + (first - begin));
  });
  run_here(job, kernels, begin, end, prefetches);
  each_tile([&](std::int64_t first, std::int64_t last) {
    tiles.add_weights(first, last, before + (first - begin), weights, updates);
  });
  sums.gradient[begin / kChunk] = fold(gradients);
  sums.update[begin / kChunk] = fold(updates);
  sums.weight[begin / kChunk] = fold(weights);
}

template <class T>
std::int64_t first_nonfinite(const TensorJob& job, std::int64_t begin, std::int64_t end) {
  Tiles<T> tiles(job);
  for (; begin < end; begin += kTile) {
    const std::int64_t tile_end = std::min(begin + kTile, end);
    const std::int64_t found = begin + tiles.count_finite(begin, tile_end);
    if (found < tile_end) return found;
  }
  return end;
}

template <class T>
void sum_rows(const TensorJob& job, const RowSums& rows, std::int64_t begin, std::int64_t end) {
  Tiles<T> tiles(job);
  const std::int64_t bytes = rows.length * static_cast<std::int64_t>(sizeof(T));
  for (std::int64_t row = begin; row < end; ++row) {
    if (job.layout == nullptr && row + kPrefetchRows < end) {
      prefetch_row<false>(job.streams[kGradient] + rows.places[rows.first[row + kPrefetchRows]] * bytes,
                          std::min(bytes, kPrefetchedRowBytes));
    }
    T* to = reinterpret_cast<T*>(rows.to) + row * rows.length;
    for (std::int64_t column = 0; column < rows.length; column += kTile, to += kTile) {
      const std::int64_t count = std::min(kTile, rows.length - column);
      for (std::int64_t k = rows.first[row]; k < rows.first[row + 1]; ++k) {
        const std::int64_t first = rows.places[k] * rows.length + column;
        const auto* const values = reinterpret_cast<const T*>(tiles.gradient(first, first + count));
        if (k == rows.first[row]) {
          std::copy_n(values, count, to);
        } else {
          for (std::int64_t i = 0; i < count; ++i) to[i] = to[i] + values[i];
        }
      }
    }
  }
}

}  // namespace

std::int64_t first_nonfinite(const TensorJob& job, std::int64_t begin, std::int64_t end) {
  return job.update->key.compute == Compute::kDouble ? first_nonfinite<double>(job, begin, end)
                                                     : first_nonfinite<float>(job, begin, end);
}

void sum_rows(const TensorJob& job, const RowSums& rows, std::int64_t begin, std::int64_t end) {
  job.update->key.compute == Compute::kDouble ? sum_rows<double>(job, rows, begin, end)
                                              : sum_rows<float>(job, rows, begin, end);
}

double sum_of_squares(const TensorJob& job, std::int64_t begin, std::int64_t end, bool prefetches) {
  return job.update->key.compute == Compute::kDouble ? sum_of_squares<double>(job, begin, end, prefetches)
                                                     : sum_of_squares<float>(job, begin, end, prefetches);
}

void run_stored(const TensorJob& job, const Kernels& kernels, std::int64_t begin, std::int64_t end, bool prefetches) {
  if (const Kernel kernel = find_stored(job, kernels)) return run_registers(job, kernel, begin, end, prefetches);
  each_part(job, begin, end,
            [&](std::int64_t first, std::int64_t last) { run_in_type(job, kernels, first, last, prefetches); });
}

void clear_gradient(const TensorJob& job, std::int64_t begin, std::int64_t end) {
  const std::int64_t size = size_of(job.update->key.compute);
  std::byte* const data = job.streams[kGradient];
  if (job.layout == nullptr || job.layout->strides[kGradient].empty()) {
    std::memset(data + begin * size, 0, static_cast<std::size_t>((end - begin) * size));
    return;
  }
  std::byte zeros[kTile * sizeof(double)] = {};
  for (; begin < end; begin += kTile) {
    mover_of<false>(size)(*job.layout, kGradient, data, begin, std::min(begin + kTile, end), zeros);
  }
}

void run_and_clear(const TensorJob& job, const Kernels& kernels, std::int64_t begin, std::int64_t end,
                   bool prefetches) {
  // A block is gathered with elements that other threads clear: these are cleared after the step.
  if (job.layout != nullptr && job.layout->blocks.axis >= 0) return run(job, kernels, begin, end, prefetches);
  for (std::int64_t last; begin < end; begin = last) {
    last = std::min(begin + kChunk, end);
    run(job, kernels, begin, last, prefetches);
    clear_gradient(job, begin, last);
  }
}

void run_and_measure(const TensorJob& job, const Kernels& kernels, std::int64_t begin, std::int64_t end,
                     bool prefetches, bool clears, const ChunkSums& sums) {
  clears = clears && (job.layout == nullptr || job.layout->blocks.axis < 0);
  each_part(job, begin, end, [&](std::int64_t first, std::int64_t part_end) {
    for (std::int64_t last; first < part_end; first = last) {
      last = std::min(first + kChunk, part_end);
      job.update->key.compute == Compute::kDouble ? measure<double>(job, kernels, first, last, prefetches, sums)
                                                  : measure<float>(job, kernels, first, last, prefetches, sums);
      if (clears) clear_gradient(job, first, last);
    }
  });
}

}  // namespace gradstep::cpu
