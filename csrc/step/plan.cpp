#include "step/plan.h"

#include <algorithm>
#include <limits>

namespace gradstep::step {

Plan make_plan(const std::int64_t* sizes, std::size_t tensors, std::int64_t grain,
               const std::vector<std::int64_t>& buckets) {
  // Rounding up must not overflow: grains above the largest multiple of kChunk are rounded down to it.
  constexpr std::int64_t kLast = std::numeric_limits<std::int64_t>::max() / kChunk * kChunk;
  grain = grain >= kLast ? kLast : (std::max<std::int64_t>(grain, 1) + kChunk - 1) / kChunk * kChunk;

  Plan plan;
  std::int64_t room = 0;                                          // elements that the current task can still take
  std::int64_t in_bucket = buckets.empty() ? kLast : buckets[0];  // elements that the bucket can still take
  for (std::size_t tensor = 0; tensor < tensors; ++tensor) {
    plan.first_chunk.push_back(plan.first_chunk.back() + static_cast<std::size_t>(chunks_of(sizes[tensor])));
    for (std::int64_t begin = 0; begin < sizes[tensor];) {
      const std::int64_t left = sizes[tensor] - begin;
      const std::int64_t take = left <= room ? left : room / kChunk * kChunk;  // the rest, or whole chunks
      if (take == 0) {                                                         // full: begin the next task
        for (; in_bucket == 0; in_bucket = buckets[plan.buckets.size() - 1]) plan.buckets.push_back(plan.tasks.size());
        plan.tasks.push_back(plan.pieces.size());
        room = std::min(grain, in_bucket);
        continue;
      }
      plan.pieces.push_back({static_cast<std::uint32_t>(tensor), begin, begin + take});
      begin += take;
      room -= take;
      if (!buckets.empty()) in_bucket -= take;
    }
  }
  while (plan.buckets.size() < std::max<std::size_t>(1, buckets.size())) plan.buckets.push_back(plan.tasks.size());
  plan.buckets.push_back(plan.tasks.size());
  plan.tasks.push_back(plan.pieces.size());
  return plan;
}

}  // namespace gradstep::step
