// How a step's elements are shared out: tensor sizes -> pieces -> tasks. Pure arithmetic; no backend, no pointers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "exec/norm.h"

namespace gradstep::step {

// Elements [begin, end) of one tensor. A piece begins at a multiple of kChunk, and so of kBlock: no chunk of a norm and
// no scale is shared by two threads.
struct Piece {
  std::uint32_t tensor;
  std::int64_t begin, end;
};

// Task k runs pieces[tasks[k]] .. pieces[tasks[k + 1] - 1]. There is one more entry than tasks, so never none.
struct Plan {
  std::vector<Piece> pieces;
  std::vector<std::size_t> tasks;
  std::vector<std::size_t> first_chunk{0};  // of each tensor, where all are counted; and one more, the number of chunks

  std::size_t task_count() const { return tasks.size() - 1; }
};

// Lays the tensors end to end and cuts about every `grain` elements (rounded up to a multiple of kChunk), by elements
// and not by tensors: a large tensor spans tasks, small ones share one. Every element is in one piece, in order; an
// empty tensor has none. A task holds at most `grain` elements, and each but the last more than grain - kChunk.
Plan make_plan(const std::int64_t* sizes, std::size_t tensors, std::int64_t grain);

}  // namespace gradstep::step
