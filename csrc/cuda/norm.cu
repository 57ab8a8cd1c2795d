#include <cstring>

#include "cuda/check.h"
#include "cuda/lane.h"
#include "cuda/launch.h"
#include "cuda/stored.h"
#include "cuda/sums.h"

// The norm in two launches: the first sums the squares of a chunk per warp, the second the chunks of a tensor per warp.
// The next kernel sums the tensors.
namespace gradstep::cuda {
namespace {

// An update without states, for visit_stored() of the gradient.
struct Stateless {
  static constexpr bool non_negative(int) { return false; }
};

// A lane's part of a block of a float64 gradient, with zeros beyond the last element.
GS_DEVICE void load_doubles(const TensorDesc& desc, std::byte* gradient, const Block& block, double (&x)[kItems]) {
  using Values = Raw<double, sizeof(double), double>;
  const std::byte* from = global(gradient + block.begin * static_cast<std::int64_t>(sizeof(double)));
  if (block.count == kBlock && !desc.strided[kGradient] && Values::aligned(from)) {
    Values::load(from, block.lane, x);
  } else {
    move<true>(desc, kGradient, gradient, block);
    Values::load(block.tile, block.lane, x);
  }
}

GS_DEVICE void load_others(const TensorDesc& desc, std::byte* gradient, const Block& block, double (&x)[kItems]) {
  std::uint32_t raw[kItems] = {};
  float values[kItems] = {};
  fetch(desc, kGradient, gradient, block, raw);
  visit_stored<Stateless, kGradient>(desc.dtypes[kGradient], [&](auto how) { how.decode(raw, 0.0f, values); });
#pragma unroll
  for (int i = 0; i < kItems; ++i) x[i] = values[i];
}

// A warp's sum of the squares of a chunk's elements, and the number of elements from the first that is not finite to
// kChunk, 0 if there is none. `tile` and `lanes` are scratch memory of the warp.
struct ChunkSum {
  double squares;
  std::uint32_t nonfinite_from_end;
};
GS_DEVICE ChunkSum sum_of_squares(const TensorDesc& desc, std::byte* gradient, const Chunk& chunk, int lane,
                                  std::byte* tile, double (&lanes)[kSumLanes]) {
  const bool doubles = desc.compute == Compute::kDouble && is_native(desc.dtypes[kGradient], Compute::kDouble);
  double own[kOwn] = {};
  std::uint32_t from_end = 0;
#pragma unroll 1
  for (std::int64_t begin = chunk.begin; begin < chunk.end; begin += kBlock) {
    const Block block(chunk, begin, lane, tile);
    double x[kItems] = {};
    doubles ? load_doubles(desc, gradient, block, x) : load_others(desc, gradient, block, x);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      own[i % kOwn] = own[i % kOwn] + x[i] * x[i];
      if (is_finite(x[i])) continue;
      const int place = doubles ? LaneSlice<double>::place(lane, i) : LaneSlice<float>::place(lane, i);
      const auto here = static_cast<std::uint32_t>(kChunk - (begin - chunk.begin) - place);
      from_end = here > from_end ? here : from_end;
    }
  }
#pragma unroll
  for (int k = 0; k < kOwn; ++k)
    lanes[doubles ? LaneSlice<double>::place(lane, k) : LaneSlice<float>::place(lane, k)] = own[k];
  return {fold(lanes, lane), warp_max(from_end)};
}

// Arguments of a launch: the gradients of consecutive tensors.
template <int kTensors>
struct Gradients {
  const TensorDesc* descs;            // of all tensors
  const Chunk* chunks;                // starting with this launch's first
  double* sums;                       // starting with this launch's first
  std::uint32_t* nonfinite_from_end;  // likewise
  std::uint32_t count;                // of chunks
  std::uint32_t first;                // index of the first tensor
  std::byte* of[kTensors];            // null: the tensor takes no part
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
  ChunkSum total{0, 0};
  if (gradient != nullptr) {
    const int warp = warp_of_thread();
    const TensorDesc& desc = *global(gradients.descs + chunk.tensor);
    total = sum_of_squares(desc, gradient, chunk, lane_of_thread(), tiles[warp], lanes[warp]);
  }
  if (lane_of_thread() != 0) return;
  gradients.sums[n] = total.squares;
  gradients.nonfinite_from_end[n] = total.nonfinite_from_end;
}

__global__ void __launch_bounds__(kThreads) add_tensors(const Sums sums) {
  __shared__ double lanes[kWarps][kSumLanes];
  const std::uint32_t tensor = warp_of_grid();
  if (tensor >= sums.tensors) return;
  const std::uint32_t first = sums.first_chunk[tensor], end = sums.first_chunk[tensor + 1];
  const double total = sum(sums.of_chunks + first, end - first, lane_of_thread(), lanes[warp_of_thread()]);
  const std::uint32_t chunk =
      first_of(end - first, [&](std::uint32_t n) { return sums.nonfinite_from_end[first + n] != 0; });
  if (lane_of_thread() != 0) return;
  sums.of_tensors[tensor] = total;
  sums.nonfinite[tensor] =
      chunk == end - first ? -1
                           : (chunk + 1) * kChunk - static_cast<std::int64_t>(sums.nonfinite_from_end[first + chunk]);
}

constexpr std::uint32_t blocks_for(std::uint32_t warps) { return (warps + kWarps - 1) / kWarps; }

template <class Args>
void launch(void (*kernel)(Args), Args& args, std::uint32_t warps, const NormWork& work) {
  if (warps > 0) start(kernel, args, blocks_for(warps), kThreads, work.stream, "launching a norm");
}

template <int kTensors>
void launch_chunks(const NormWork& work) {
  static_assert(sizeof(Gradients<kTensors>) <= kMostBytes);
  Gradients<kTensors> args;
  args.descs = work.descs;
  for (std::uint32_t first = 0, last; first < work.sums.tensors; first = last) {
    last = work.sums.tensors - first < kTensors ? work.sums.tensors : first + kTensors;
    std::memcpy(args.of, work.gradients + first, (last - first) * sizeof(std::byte*));
    const std::size_t begin = work.first_chunk[first];
    args.first = first;
    args.count = static_cast<std::uint32_t>(work.first_chunk[last] - begin);
    args.chunks = work.chunks + begin;
    args.sums = work.sums.of_chunks + begin;
    args.nonfinite_from_end = work.sums.nonfinite_from_end + begin;
    launch(&add_chunks<kTensors>, args, args.count, work);
  }
}

}  // namespace

void launch_sums(const NormWork& work) {
  work.sums.tensors > kFew ? launch_chunks<kMany>(work) : launch_chunks<kFew>(work);
  Sums sums = work.sums;
  launch(&add_tensors, sums, sums.tensors, work);
}

void load_sums(std::size_t tensors) {
  tensors > kFew ? load(&add_chunks<kMany>) : load(&add_chunks<kFew>);
  load(&add_tensors);
}

}  // namespace gradstep::cuda
