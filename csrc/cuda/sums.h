#pragma once

#include "cuda/lane.h"
#include "exec/norm.h"

// Sums computed by a warp, in the order that exec/norm.h defines.
namespace gradstep::cuda {

inline constexpr int kOwn = kSumLanes / kWarp;  // lanes of the sum per lane of the warp
static_assert(kBlock % kSumLanes == 0 && kItems % kOwn == 0);

// Sums the lanes, by a warp; overwrites them.
GS_DEVICE double fold(double (&lanes)[kSumLanes], int lane) {
#pragma unroll
  for (int half = kSumLanes / 2; half > 0; half /= 2) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < half; i += kWarp) {
      if (i + lane < half) lanes[i + lane] = lanes[i + lane] + lanes[i + lane + half];
    }
  }
  __syncwarp();
  return lanes[0];
}

// The first number below `count` for which holds(n) is true, by a warp; `count` if there is none.
template <class Holds>
GS_DEVICE std::uint32_t first_of(std::uint32_t count, const Holds& holds) {
  std::uint32_t n = static_cast<std::uint32_t>(lane_of_thread());
  while (n < count && !holds(n)) n += kWarp;
  const std::uint32_t most = warp_max(n < count ? count - n : 0);
  return count - most;
}

// The largest of sums of squares, by a warp; NaN if any is NaN.
GS_DEVICE double largest(const double* sums, std::uint32_t count) {
  double most = 0;
  for (std::uint32_t n = static_cast<std::uint32_t>(lane_of_thread()); n < count; n += kWarp) {
    most = larger_sum(most, sums[n]);
  }
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) most = larger_sum(most, __shfl_xor_sync(0xffffffffu, most, lanes));
  return most;
}

// The sum of numbers, by a warp. `lanes` is scratch memory.
GS_DEVICE double sum(const double* numbers, std::int64_t count, int lane, double (&lanes)[kSumLanes]) {
  double own[kOwn] = {};
#pragma unroll 4
  for (std::int64_t row = 0; row < count; row += kSumLanes) {
#pragma unroll
    for (int k = 0; k < kOwn; ++k) {
      const std::int64_t i = row + k * kWarp + lane;
      own[k] = own[k] + (i < count ? numbers[i] : 0);
    }
  }
#pragma unroll
  for (int k = 0; k < kOwn; ++k) lanes[k * kWarp + lane] = own[k];
  return fold(lanes, lane);
}

}  // namespace gradstep::cuda
