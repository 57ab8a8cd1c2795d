#include "cpu/panel.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "exec/norm.h"

namespace gradstep::cpu {
namespace {

constexpr std::int64_t kLine = 64;  // bytes

std::atomic<std::uint64_t> passes{1};

// The product of the extents of axes [begin, end).
std::int64_t extent_of(const Layout& layout, int begin, int end) {
  std::int64_t size = 1;
  for (int axis = begin; axis < end; ++axis) size *= layout.shape[static_cast<std::size_t>(axis)];
  return size;
}

// The order of chunks in which those whose elements share cache lines follow one another: for each group of rows and
// each window of columns, the chunks that begin there, row by row.
std::vector<std::uint32_t> order_of_chunks(std::int64_t outer, std::int64_t axis, std::int64_t plane,
                                           std::int64_t rows) {
  std::vector<std::uint32_t> order;
  order.reserve(static_cast<std::size_t>(chunks_of(outer * axis * plane)));
  for (std::int64_t first = 0; first < outer; ++first) {
    for (std::int64_t group = 0; group < axis; group += rows) {
      for (std::int64_t column = 0; column < plane; column += kPanelWindow) {
        const std::int64_t last_column = std::min(column + kPanelWindow, plane);
        for (std::int64_t row = group; row < std::min(group + rows, axis); ++row) {
          const std::int64_t begin = (first * axis + row) * plane;
          for (std::int64_t k = chunks_of(begin + column); k < chunks_of(begin + last_column); ++k) {
            order.push_back(static_cast<std::uint32_t>(k));
          }
        }
      }
    }
  }
  return order;
}

template <int kBytes>
struct Item;
template <>
struct Item<1> {
  using Type = std::uint8_t;
};
template <>
struct Item<2> {
  using Type = std::uint16_t;
};
template <>
struct Item<4> {
  using Type = std::uint32_t;
};
template <>
struct Item<8> {
  using Type = std::uint64_t;
};

// Registers of 16 bytes, which every processor has.
template <int kSize>
struct Register {
  typedef typename Item<kSize>::Type Type __attribute__((vector_size(16)));
};

// The items of two registers alternately: of their lower halves, or of their upper halves.
template <int kSize, bool kUpper, int... kIndex>
typename Register<kSize>::Type interleave(typename Register<kSize>::Type a, typename Register<kSize>::Type b,
                                          std::integer_sequence<int, kIndex...>) {
  constexpr int kItems = 16 / kSize;
  return __builtin_shufflevector(a, b, (kIndex / 2 + kIndex % 2 * kItems + (kUpper ? kItems / 2 : 0))...);
}

// Transposes a square of 16 / kSize columns: `to` has rows of `pitch` bytes. Each step of the loop interleaves register
// i with register i + n / 2; after log2(n) steps register j holds item j of every column.
template <int kSize>
void transpose(const std::byte* const* columns, std::int64_t offset, std::byte* to, std::int64_t pitch) {
  constexpr int kItems = 16 / kSize;
  using Vector = typename Register<kSize>::Type;
  constexpr std::make_integer_sequence<int, kItems> kIndex;
  Vector v[kItems], w[kItems];
  for (int i = 0; i < kItems; ++i) std::memcpy(&v[i], columns[i] + offset, 16);
  GS_UNROLL(4)
  for (int step = 1; step < kItems; step *= 2) {
    GS_UNROLL(16)
    for (int i = 0; i < kItems / 2; ++i) {
      w[2 * i] = interleave<kSize, false>(v[i], v[i + kItems / 2], kIndex);
      w[2 * i + 1] = interleave<kSize, true>(v[i], v[i + kItems / 2], kIndex);
    }
    GS_UNROLL(16)
    for (int i = 0; i < kItems; ++i) v[i] = w[i];
  }
  for (int i = 0; i < kItems; ++i) std::memcpy(to + i * pitch, &v[i], 16);
}

// Copies `width` columns of `height` items `step` bytes apart to rows of `pitch` bytes.
template <int kSize>
void gather_columns(const std::byte* const* columns, std::int64_t width, std::int64_t height, std::int64_t step,
                    std::byte* to, std::int64_t pitch) {
  constexpr std::int64_t kItems = 16 / kSize;
  const std::int64_t wide = step == kSize ? width / kItems * kItems : 0, high = height / kItems * kItems;
  const auto one_by_one = [&](std::int64_t begin, std::int64_t end, std::int64_t first) {
    for (std::int64_t i = begin; i < end; ++i) {
      for (std::int64_t j = first; j < height; ++j) {
        std::memcpy(to + j * pitch + i * kSize, columns[i] + j * step, kSize);  // items may be unaligned
      }
    }
  };
  for (std::int64_t i = 0; i < wide; i += kItems) {
    for (std::int64_t k = i + kPrefetchColumns; k < std::min(i + kPrefetchColumns + kItems, width); ++k) {
      __builtin_prefetch(columns[k]);
      __builtin_prefetch(columns[k] + height * kSize - 1);
    }
    for (std::int64_t j = 0; j < high; j += kItems) {
      transpose<kSize>(columns + i, j * kSize, to + j * pitch + i * kSize, pitch);
    }
    one_by_one(i, i + kItems, high);
  }
  one_by_one(wide, width, 0);
}

// A block's place in its tensor.
struct Place {
  std::int64_t row, height;    // along Blocks::axis
  std::int64_t column, width;  // among the elements of the axes after it
  std::int64_t outer;          // index of the axes before it
};

Place place_of(const Layout& layout, std::int64_t block) {
  const Blocks& blocks = layout.blocks;
  const std::int64_t axis = layout.shape[static_cast<std::size_t>(blocks.axis)];
  const std::int64_t across = (blocks.plane + blocks.columns - 1) / blocks.columns;
  const std::int64_t down = (axis + blocks.rows - 1) / blocks.rows;
  const std::int64_t column = block % across * blocks.columns, row = block / across % down * blocks.rows;
  return {row, std::min(blocks.rows, axis - row), column, std::min(blocks.columns, blocks.plane - column),
          block / across / down};
}

void gather_block(const TensorJob& job, std::int64_t block, std::byte* to) {
  const Layout& layout = *job.layout;
  const std::vector<std::int64_t>& strides = layout.strides[kGradient];
  const Place place = place_of(layout, block);
  const int axis = layout.blocks.axis, last = static_cast<int>(layout.shape.size()) - 1;

  const std::byte* first = job.streams[kGradient] + place.row * strides[static_cast<std::size_t>(axis)];
  std::int64_t outer = place.outer;
  for (int k = axis - 1; k >= 0; --k) {
    const auto at = static_cast<std::size_t>(k);
    first += outer % layout.shape[at] * strides[at];
    outer /= layout.shape[at];
  }
  const std::byte* columns[kMaxBlockColumns];
  const std::int64_t run = layout.shape.back(), step = strides.back();
  for (std::int64_t i = 0; i < place.width;) {
    std::int64_t rest = (place.column + i) / run, index = (place.column + i) % run;
    const std::byte* row = first;
    for (int k = last - 1; k > axis; --k) {
      const auto at = static_cast<std::size_t>(k);
      row += rest % layout.shape[at] * strides[at];
      rest /= layout.shape[at];
    }
    for (; i < place.width && index < run; ++i, ++index) columns[i] = row + index * step;
  }

  const std::int64_t size = item_size(layout.dtypes[kGradient]);
  std::int64_t between = strides[static_cast<std::size_t>(axis)], pitch = place.width * size;
  if (between < 0) {  // from the other end
    for (std::int64_t i = 0; i < place.width; ++i) columns[i] += (place.height - 1) * between;
    to += (place.height - 1) * pitch;
    between = -between;
    pitch = -pitch;
  }
  const auto gather = size == 1   ? &gather_columns<1>
                      : size == 2 ? &gather_columns<2>
                      : size == 4 ? &gather_columns<4>
                                  : &gather_columns<8>;
  gather(columns, place.width, place.height, between, to, pitch);
}

}  // namespace

void set_blocks(Layout& layout) {
  const std::vector<std::int64_t>& strides = layout.strides[kGradient];
  if (strides.empty() || layout.rows != nullptr) return;
  const int last = static_cast<int>(strides.size()) - 1;
  int closest = last;
  for (int axis = last - 1; axis >= 0; --axis) {
    const std::int64_t stride = strides[static_cast<std::size_t>(axis)];
    if (stride != 0 && std::abs(stride) < std::abs(strides[static_cast<std::size_t>(closest)])) closest = axis;
  }
  const std::int64_t stride = std::abs(strides[static_cast<std::size_t>(closest)]);
  if (std::abs(strides.back()) < kBlockedFrom || stride >= kLine) return;
  Blocks& blocks = layout.blocks;
  const std::int64_t size = item_size(layout.dtypes[kGradient]), axis = layout.shape[static_cast<std::size_t>(closest)];
  const std::int64_t line = kLine / size;  // items
  blocks.axis = closest;
  blocks.plane = extent_of(layout, closest + 1, last + 1);
  const std::int64_t across = (blocks.plane + kMaxBlockColumns - 1) / kMaxBlockColumns;
  blocks.columns =
      across == 1 ? blocks.plane : std::min(((blocks.plane + across - 1) / across + 15) / 16 * 16, kMaxBlockColumns);
  blocks.rows = std::min(kBlockBytes / (size * blocks.columns) / line * line, axis);
  if (blocks.plane > kPanelColumns) {
    layout.chunks = order_of_chunks(extent_of(layout, 0, closest), axis, blocks.plane, blocks.rows);
  }
}

void begin_panels() { passes.fetch_add(1, std::memory_order_relaxed); }

Panel* Panel::of_thread() {
  thread_local const std::unique_ptr<Panel> panel(new (std::nothrow) Panel);
  return panel.get();
}

void Panel::gather(const TensorJob& job, std::int64_t begin, std::int64_t end, std::byte* to) {
  const std::uint64_t pass = passes.load(std::memory_order_relaxed);
  if (&job != job_ || pass != pass_) {
    job_ = &job;
    pass_ = pass;
    std::fill(std::begin(blocks_), std::end(blocks_), -1);
    std::fill(std::begin(used_), std::end(used_), 0);
  }
  const Layout& layout = *job.layout;
  const Blocks& blocks = layout.blocks;
  const std::int64_t axis = layout.shape[static_cast<std::size_t>(blocks.axis)];
  const std::int64_t across = (blocks.plane + blocks.columns - 1) / blocks.columns;
  const std::int64_t down = (axis + blocks.rows - 1) / blocks.rows;
  const std::int64_t size = item_size(layout.dtypes[kGradient]);
  while (begin < end) {
    const std::int64_t line = begin / blocks.plane, column = begin % blocks.plane;
    const std::int64_t outer = line / axis, row = line % axis;
    const std::int64_t first_row = row / blocks.rows * blocks.rows, first = column / blocks.columns * blocks.columns;
    const std::int64_t block = (outer * down + row / blocks.rows) * across + column / blocks.columns;
    const std::int64_t width = std::min(blocks.columns, blocks.plane - first);
    const std::int64_t at = (row - first_row) * width + column - first;
    // Blocks as wide as the plane are contiguous.
    const std::int64_t in_block =
        across == 1 ? std::min(blocks.rows, axis - first_row) * width - at : width - (column - first);
    const std::int64_t count = std::min(in_block, end - begin);
    std::memcpy(to, find(job, block) + at * size, static_cast<std::size_t>(count * size));
    to += count * size;
    begin += count;
  }
}

const std::byte* Panel::find(const TensorJob& job, std::int64_t block) {
  ++time_;
  const int next = last_ + 1 == kPanelBlocks ? 0 : last_ + 1;
  int found = blocks_[last_] == block ? last_ : next;
  if (blocks_[found] != block) {
    found = static_cast<int>(std::find(std::begin(blocks_), std::end(blocks_), block) - std::begin(blocks_));
    if (found == kPanelBlocks) {
      found = static_cast<int>(std::min_element(std::begin(used_), std::end(used_)) - std::begin(used_));
      gather_block(job, block, data_[found]);
      blocks_[found] = block;
    }
  }
  used_[found] = time_;
  last_ = found;
  return data_[found];
}

}  // namespace gradstep::cpu
