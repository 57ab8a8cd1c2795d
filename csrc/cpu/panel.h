#pragma once

#include <cstdint>

#include "cpu/tuning.h"
#include "exec/tensor_job.h"

// Gathers gradients whose closest elements are not neighbours along the last axis, such as those of a transposed
// matrix. Reading such a gradient row by row uses one element of each cache line, so it is read in blocks of two
// dimensions: a run of the axis along which elements are closest by a run of the axes after it.
namespace gradstep::cpu {

// Chooses the blocks of a layout and the order of its chunks, if its gradient is to be gathered in blocks.
void set_blocks(Layout& layout);

// Called before a pass over layouts with blocks: gradients may have changed.
void begin_panels();

// The blocks that a thread has gathered last. A block is used by as many rows as it has, and mostly by several tasks.
class Panel {
 public:
  // The calling thread's; null if there is no memory for it.
  static Panel* of_thread();

  // Copies elements [begin, end) of the gradient of a layout with blocks.
  void gather(const TensorJob& job, std::int64_t begin, std::int64_t end, std::byte* to);

 private:
  // One block, as rows of the axes after Blocks::axis.
  const std::byte* find(const TensorJob& job, std::int64_t block);

  const TensorJob* job_ = nullptr;  // whose blocks these are
  std::uint64_t pass_ = 0;          // in which they were gathered
  std::uint64_t time_ = 0;
  int last_ = 0;
  std::int64_t blocks_[kPanelBlocks];
  std::uint64_t used_[kPanelBlocks];  // when
  alignas(64) std::byte data_[kPanelBlocks][kBlockBytes];
};

}  // namespace gradstep::cpu
