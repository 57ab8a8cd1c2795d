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
