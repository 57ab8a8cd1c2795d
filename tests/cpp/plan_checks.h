// What holds for every plan, whatever the sizes and the grain.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "step/plan.h"

namespace plan_checks {

using gradstep::kChunk;
using gradstep::step::Piece;
using gradstep::step::Plan;
using Sizes = std::vector<std::int64_t>;
constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();

// The effective grain: at least one chunk, and a multiple of chunks. (Unsigned, so that it cannot overflow.)
inline std::uint64_t effective(std::int64_t grain) {
  const std::uint64_t chunk = kChunk, wanted = grain < 1 ? 1 : static_cast<std::uint64_t>(grain);
  return std::min((wanted + chunk - 1) / chunk, static_cast<std::uint64_t>(kMax) / chunk) * chunk;
}

// Pieces cover every tensor from 0 to its size without gap or overlap, in order, and begin at chunks; first_chunk
// counts the chunks.
inline bool covers(const Plan& plan, const Sizes& sizes) {
  std::size_t p = 0;
  for (std::size_t tensor = 0; tensor < sizes.size(); ++tensor) {
    for (std::int64_t done = 0; done < sizes[tensor]; ++p) {
      if (p == plan.pieces.size()) return false;
      const Piece& piece = plan.pieces[p];
      if (piece.tensor != tensor || piece.begin != done || piece.end <= piece.begin) return false;
      if (piece.end > sizes[tensor] || piece.begin % kChunk != 0) return false;
      done = piece.end;
    }
    const std::size_t chunks = plan.first_chunk[tensor + 1] - plan.first_chunk[tensor];
    if (chunks != static_cast<std::uint64_t>(sizes[tensor]) / kChunk + (sizes[tensor] % kChunk != 0)) return false;
  }
  return p == plan.pieces.size() && plan.first_chunk.size() == sizes.size() + 1 && plan.first_chunk[0] == 0;
}

// Tasks divide the pieces, none is empty, and each holds (grain - kChunk, grain] elements; the last may hold fewer.
inline bool shares(const Plan& plan, std::int64_t grain) {
  const std::uint64_t most = effective(grain);
  if (plan.tasks.empty() || plan.tasks.front() != 0 || plan.tasks.back() != plan.pieces.size()) return false;
  for (std::size_t k = 0; k < plan.task_count(); ++k) {
    if (plan.tasks[k] >= plan.tasks[k + 1] || plan.tasks[k + 1] > plan.pieces.size()) return false;
    std::uint64_t elements = 0;
    for (std::size_t p = plan.tasks[k]; p < plan.tasks[k + 1]; ++p) {
      elements += static_cast<std::uint64_t>(plan.pieces[p].end - plan.pieces[p].begin);
    }
    if (elements > most) return false;
    if (k + 1 < plan.task_count() && elements + kChunk <= most) return false;
  }
  return true;
}

// A tensor is cut only at the end of a task: no task has two pieces of one tensor.
inline bool cuts_only_between_tasks(const Plan& plan) {
  for (std::size_t k = 0; k < plan.task_count(); ++k) {
    for (std::size_t p = plan.tasks[k] + 1; p < plan.tasks[k + 1]; ++p) {
      if (plan.pieces[p].tensor == plan.pieces[p - 1].tensor) return false;
    }
  }
  return true;
}

// Buckets divide the tasks, and each has the number of elements that was asked for; without any, one has all.
inline bool has_buckets(const Plan& plan, const Sizes& buckets) {
  if (plan.buckets.size() != std::max<std::size_t>(1, buckets.size()) + 1) return false;
  if (plan.buckets.front() != 0 || plan.buckets.back() != plan.task_count()) return false;
  for (std::size_t b = 0; b < buckets.size(); ++b) {
    if (plan.buckets[b] > plan.buckets[b + 1]) return false;
    std::int64_t elements = 0;
    for (std::size_t p = plan.tasks[plan.buckets[b]]; p < plan.tasks[plan.buckets[b + 1]]; ++p) {
      elements += plan.pieces[p].end - plan.pieces[p].begin;
    }
    if (elements != buckets[b]) return false;
  }
  return true;
}

// Whether a plan without buckets has all of these properties.
inline bool holds(const Plan& plan, const Sizes& sizes, std::int64_t grain) {
  return covers(plan, sizes) && shares(plan, grain) && cuts_only_between_tasks(plan) && has_buckets(plan, {});
}

}  // namespace plan_checks
