// How the elements of a step are divided: tensor sizes -> pieces -> tasks. Pure arithmetic; no backend, no pointers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "exec/norm.h"

namespace gradstep::step {

// Elements [begin, end) of one tensor. A piece begins at a multiple of kChunk, and so of kBlock: no two threads share a
// chunk of a norm or a scale.
struct Piece {
  std::uint32_t tensor;
  std::int64_t begin, end;
};

// Task k runs pieces[tasks[k]] .. pieces[tasks[k + 1] - 1]. `tasks` has one more entry than there are tasks, and so is
// never empty once the plan is made. Bucket b has the tasks from buckets[b] to before buckets[b + 1].
struct Plan {
  std::vector<Piece> pieces;
  std::vector<std::size_t> tasks;
  std::vector<std::size_t> buckets{0};
  std::vector<std::size_t> first_chunk{0};  // of each tensor, counted over all; then the number of chunks

  std::size_t task_count() const { return tasks.size() - 1; }
};

// Concatenates the tensors and cuts about every `grain` elements (rounded up to a multiple of kChunk), whatever the
// tensor boundaries: a large tensor spans several tasks, small ones share one. Every element is in one piece, in order;
// an empty tensor has none. A task has at most `grain` elements, and each but the last has more than grain - kChunk.
//
// Successive elements may be divided into buckets of the given sizes, whose sum is that of the tensors' sizes. A bucket
// ends at the end of a tensor or at a multiple of kChunk of its elements, and with it a task, which may be shorter.
// Without any, there is one bucket.
Plan make_plan(const std::int64_t* sizes, std::size_t tensors, std::int64_t grain,
               const std::vector<std::int64_t>& buckets = {});

}  // namespace gradstep::step
