#include "cuda/check.h"
#include "cuda/lane.h"
#include "cuda/launch.h"
#include "cuda/stored.h"
#include "job/norm.h"

// The norm in three launches: a warp adds up the squares of a chunk, then the chunks of a tensor, then the tensors.
namespace gradstep::cuda {
namespace {

constexpr int kOwn = kSumLanes / kWarp;  // lanes of a sum that a lane of the warp has
static_assert(kBlock % kSumLanes == 0 && kItems % kOwn == 0);

// The sum of lanes, by a warp.
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

// The sum of numbers, by a warp, which has room for lanes.
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

// A stream that is no state.
struct Stateless {
  static constexpr bool not_negative(int) { return false; }
};

// A lane's share of a block of the gradient as doubles, with zeros behind the last element.
GS_DEVICE void load_doubles(const Row& row, std::byte* gradient, const Block& block, double (&x)[kItems]) {
  using Values = Raw<double, sizeof(double), double>;
  const std::byte* from = global(gradient + block.begin * static_cast<std::int64_t>(sizeof(double)));
  if (block.count == kBlock && !row.strided[kGradient] && Values::aligned(from)) {
    Values::load(from, block.lane, x);
  } else {
    move<true>(row, kGradient, gradient, block);
    Values::load(block.tile, block.lane, x);
  }
}

GS_DEVICE void load_others(const Row& row, std::byte* gradient, const Block& block, double (&x)[kItems]) {
  std::uint32_t raw[kItems] = {};
  float values[kItems] = {};
  fetch(row, kGradient, gradient, block, raw);
  visit_stored<Stateless, kGradient>(row.dtypes[kGradient], [&](auto how) { how.decode(raw, nullptr, values); });
#pragma unroll
  for (int i = 0; i < kItems; ++i) x[i] = values[i];
}

// The sum of the squares of a chunk's elements, by a warp, which has a tile and room for lanes.
GS_DEVICE double sum_of_squares(const Row& row, std::byte* gradient, const Chunk& chunk, int lane, std::byte* tile,
                                double (&lanes)[kSumLanes]) {
  const bool doubles = row.dtypes[kGradient] == DType::kFloat64;
  double own[kOwn] = {};
#pragma unroll 1
  for (std::int64_t begin = chunk.begin; begin < chunk.end; begin += kBlock) {
    const Block block(chunk, begin, lane, tile);
    double x[kItems] = {};
    doubles ? load_doubles(row, gradient, block, x) : load_others(row, gradient, block, x);
#pragma unroll
    for (int i = 0; i < kItems; ++i) own[i % kOwn] = own[i % kOwn] + x[i] * x[i];
  }
#pragma unroll
  for (int k = 0; k < kOwn; ++k) lanes[doubles ? Share<double>::place(lane, k) : Share<float>::place(lane, k)] = own[k];
  return fold(lanes, lane);
}

// A launch: neighbours among the tensors.
template <int kTensors>
struct Gradients {
  const Row* rows;          // of all tensors
  const Chunk* chunks;      // from this launch's first,
  double* sums;             // as is this
  std::uint32_t count;      // chunks
  std::uint32_t first;      // tensor
  std::byte* of[kTensors];  // null: the tensor takes no part
};

GS_DEVICE std::uint32_t warp_of_grid() { return blockIdx.x * kWarps + threadIdx.x / kWarp; }

template <int kTensors>
__global__ void __launch_bounds__(kThreads) add_chunks(const __grid_constant__ Gradients<kTensors> gradients) {
  alignas(16) __shared__ std::byte tiles[kWarps][kBlock * sizeof(double)];
  __shared__ double lanes[kWarps][kSumLanes];
  const std::uint32_t n = warp_of_grid();
  if (n >= gradients.count) return;
  const Chunk chunk = *global(gradients.chunks + n);
  std::byte* const gradient = gradients.of[chunk.tensor - gradients.first];
  double total = 0;
  if (gradient != nullptr) {
    const int warp = warp_of_thread();
    const Row& row = *global(gradients.rows + chunk.tensor);
    total = sum_of_squares(row, gradient, chunk, lane_of_thread(), tiles[warp], lanes[warp]);
  }
  if (lane_of_thread() == 0) gradients.sums[n] = total;
}

__global__ void __launch_bounds__(kThreads) add_tensors(const Sums sums) {
  __shared__ double lanes[kWarps][kSumLanes];
  const std::uint32_t tensor = warp_of_grid();
  if (tensor >= sums.tensors) return;
  const std::uint32_t first = sums.first_chunk[tensor], end = sums.first_chunk[tensor + 1];
  const double total = sum(sums.of_chunks + first, end - first, lane_of_thread(), lanes[warp_of_thread()]);
  if (lane_of_thread() == 0) sums.of_tensors[tensor] = total;
}

__global__ void __launch_bounds__(kWarp) finish(const Sums sums) {
  __shared__ double lanes[kSumLanes];
  const double norm = sqrt(sum(sums.of_tensors, sums.tensors, lane_of_thread(), lanes));
  if (lane_of_thread() != 0) return;
  sums.clip->norm = norm;
  sums.clip->factor = clip_factor(norm, sums.limit == sums.limit ? sums.limit : sums.clip->limit);
}

template <class Args>
void launch(void (*kernel)(Args), Args& args, std::uint32_t blocks, int threads, const NormWork& work) {
  if (work.loads) return load(kernel);
  if (blocks > 0) start(kernel, args, blocks, threads, work.stream, "a norm's launch");
}

constexpr std::uint32_t blocks_for(std::uint32_t warps) { return (warps + kWarps - 1) / kWarps; }

template <int kTensors>
void launch_chunks(const NormWork& work) {
  static_assert(sizeof(Gradients<kTensors>) <= kMostBytes);
  Gradients<kTensors> args;
  args.rows = work.rows;
  for (std::uint32_t tensor = 0; tensor < work.sums.tensors;) {
    args.first = tensor;
    const std::uint32_t limit = work.sums.tensors - tensor < kTensors ? work.sums.tensors : tensor + kTensors;
    for (; tensor < limit; ++tensor) {
      const Job& job = work.jobs[tensor];
      args.of[tensor - args.first] = job.update == nullptr ? nullptr : job.streams[kGradient];
    }
    const std::size_t begin = work.first_chunk[args.first];
    args.count = static_cast<std::uint32_t>(work.first_chunk[tensor] - begin);
    args.chunks = work.chunks + begin;
    args.sums = work.sums.of_chunks + begin;
    launch(&add_chunks<kTensors>, args, blocks_for(args.count), kThreads, work);
  }
}

}  // namespace

void launch_norm(const NormWork& work) {
  work.sums.tensors > kFew ? launch_chunks<kMany>(work) : launch_chunks<kFew>(work);
  Sums sums = work.sums;
  launch(&add_tensors, sums, blocks_for(sums.tensors), kThreads, work);
  launch(&finish, sums, 1, kWarp, work);
}

}  // namespace gradstep::cuda
