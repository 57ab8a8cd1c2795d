#include "cpu/panel.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "cpu/isa.h"
#include "exec/norm.h"

namespace gradstep::cpu {
namespace {

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

// A block's place in its tensor.
struct Place {
  std::int64_t row, height;    // along Blocks::axis
  std::int64_t column, width;  // among the elements of the axes after it
  std::int64_t outer;          // index of the axes before it
};

Place place_of(const Layout& layout, std::int64_t block) {
  const Blocks& blocks = layout.blocks;
  const std::int64_t axis = layout.shape[static_cast<std::size_t>(blocks.axis)];
  const std::int64_t column = block % blocks.across * blocks.columns;
  const std::int64_t row = block / blocks.across % blocks.down * blocks.rows;
  return {row, std::min(blocks.rows, axis - row), column, std::min(blocks.columns, blocks.plane - column),
          block / blocks.across / blocks.down};
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
  const auto& by_size = conversions().gather_columns;
  const GatherColumns gather = size == 2 ? by_size[0] : size == 4 ? by_size[1] : by_size[2];
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
  const std::int64_t plane = extent_of(layout, closest + 1, last + 1);
  if (std::abs(strides.back()) < kBlockedFrom || stride >= kLine || plane < kBlockedColumns) return;
  Blocks& blocks = layout.blocks;
  const std::int64_t size = item_size(layout.dtypes[kGradient]), axis = layout.shape[static_cast<std::size_t>(closest)];
  const std::int64_t line = kLine / size;  // items
  blocks.axis = closest;
  blocks.plane = plane;
  const auto divide_up = [](std::int64_t a, std::int64_t b) { return (a + b - 1) / b; };
  blocks.across = divide_up(plane, kMaxBlockColumns);
  if (blocks.across == 1) {
    blocks.columns = plane;
  } else {  // about equally wide, and multiples of a register
    blocks.columns = std::min(divide_up(divide_up(plane, blocks.across), 16) * 16, kMaxBlockColumns);
    blocks.across = divide_up(plane, blocks.columns);
  }
  blocks.rows = std::min(kBlockBytes / (size * blocks.columns) / line * line, axis);
  blocks.down = divide_up(axis, blocks.rows);
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
  const Blocks& blocks = job.layout->blocks;
  const std::int64_t axis = job.layout->shape[static_cast<std::size_t>(blocks.axis)];
  const std::int64_t size = item_size(job.layout->dtypes[kGradient]);
  while (begin < end) {
    const std::int64_t line = begin / blocks.plane, outer = line / axis, group = line % axis / blocks.rows;
    const std::int64_t row = line % axis - group * blocks.rows;  // within its block
    std::int64_t column = begin - line * blocks.plane, first = column / blocks.columns * blocks.columns;
    std::int64_t block = (outer * blocks.down + group) * blocks.across + column / blocks.columns;
    // Blocks as wide as the plane are contiguous, from one row to the next.
    const std::int64_t rows = blocks.across == 1 ? std::min(blocks.rows, axis - group * blocks.rows) - row : 1;
    const std::int64_t row_end = std::min(end, begin + rows * blocks.plane - column);
    while (begin < row_end) {
      const std::int64_t width = std::min(blocks.columns, blocks.plane - first);
      const std::int64_t at = row * width + column - first;
      const std::int64_t count = std::min(rows * width - (column - first), row_end - begin);
      std::memcpy(to, find(job, block) + at * size, static_cast<std::size_t>(count * size));
      to += count * size;
      begin += count;
      column = first += blocks.columns;
      ++block;
    }
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
