#include <cstring>

#include "cuda/check.h"
#include "cuda/lane.h"
#include "cuda/launch.h"
#include "cuda/stored.h"
#include "cuda/sums.h"

// The norm of all gradients in two launches: the first sums the squares of a chunk per warp, the second the chunks of a
// tensor per warp. The next kernel sums the tensors. The norms of each tensor are summed alike, around the updates.
namespace gradstep::cuda {
namespace {

// An update without states, for visit_stored().
struct Stateless {
  static constexpr bool non_negative(int) { return false; }
};

// A stream's values as doubles. Float64 streams of tensors that are computed in float64 are divided among lanes as
// doubles are, others as floats.
template <int s>
struct Values {
  const TensorDesc& desc;
  std::byte* data;
  bool doubles = desc.compute == Compute::kDouble && is_native(desc.dtypes[s], Compute::kDouble);

  // A lane's part of a block, with zeros beyond the last element.
  GS_DEVICE void load(const Block& block, double (&x)[kItems]) const {
    doubles ? load_doubles(block, x) : load_others(block, x);
  }

  // The index in the block of a lane's item.
  GS_DEVICE int place(int lane, int item) const {
    return doubles ? LaneSlice<double>::place(lane, item) : LaneSlice<float>::place(lane, item);
  }

 private:
  GS_DEVICE void load_doubles(const Block& block, double (&x)[kItems]) const {
    using Whole = Raw<double, sizeof(double), double>;
    const std::byte* from = global(data + block.begin * static_cast<std::int64_t>(sizeof(double)));
    if (block.count == kBlock && !desc.strided[s] && Whole::aligned(from)) {
      Whole::load(from, block.lane, x);
    } else {
      move<true>(desc, s, data, block);
      Whole::load(block.tile, block.lane, x);
    }
  }

  GS_DEVICE void load_others(const Block& block, double (&x)[kItems]) const {
    std::uint32_t raw[kItems] = {};
    float values[kItems] = {};
    fetch(desc, s, data, block, raw);
    visit_stored<Stateless, s>(desc.dtypes[s], [&](auto how) { how.decode(raw, 0.0f, values); });
#pragma unroll
    for (int i = 0; i < kItems; ++i) x[i] = values[i];
  }
};

// A lane's part of a sum of squares.
class Squares {
 public:
  GS_DEVICE void add(int item, double x) { own_[item % kOwn] = own_[item % kOwn] + x * x; }

  // The warp's sum. `lanes` is scratch memory of the warp.
  template <class Of>
  GS_DEVICE double fold(const Of& values, int lane, double (&lanes)[kSumLanes]) const {
    __syncwarp();  // another lane may still read them
#pragma unroll
    for (int k = 0; k < kOwn; ++k) lanes[values.place(lane, k)] = own_[k];
    return cuda::fold(lanes, lane);
  }

 private:
  double own_[kOwn] = {};
};

// A warp's sum of the squares of a chunk's elements, and the number of elements from the first that is not finite to
// kChunk, 0 if there is none. `tile` and `lanes` are scratch memory of the warp.
struct ChunkSum {
  double squares;
  std::uint32_t nonfinite_from_end;
};
GS_DEVICE ChunkSum sum_of_squares(const TensorDesc& desc, std::byte* gradient, const Chunk& chunk, int lane,
                                  std::byte* tile, double (&lanes)[kSumLanes]) {
  const Values<kGradient> values{desc, gradient};
  Squares squares;
  std::uint32_t from_end = 0;
#pragma unroll 1
  for (std::int64_t begin = chunk.begin; begin < chunk.end; begin += kBlock) {
    double x[kItems] = {};
    values.load(Block(chunk, begin, lane, tile), x);
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      squares.add(i, x[i]);
      if (is_finite(x[i])) continue;
      const auto here = static_cast<std::uint32_t>(kChunk - (begin - chunk.begin) - values.place(lane, i));
      from_end = here > from_end ? here : from_end;
    }
  }
  return {squares.fold(values, lane, lanes), warp_max(from_end)};
}

// The parameter's values before the update, in its compute type.
struct Before {
  std::byte* values;
  bool doubles;

  GS_DEVICE void keep(std::int64_t element, double x) const {
    doubles ? reinterpret_cast<double*>(values)[element] = x
            : reinterpret_cast<float*>(values)[element] = static_cast<float>(x);
  }
  // The difference of the value after the update, in the compute type.
  GS_DEVICE double update(std::int64_t element, double x) const {
    return doubles ? x - reinterpret_cast<const double*>(values)[element]
                   : static_cast<float>(x) - reinterpret_cast<const float*>(values)[element];
  }
};

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

// Arguments of a launch that measures consecutive tensors.
struct MeasureArgs {
  const TensorDesc* descs;  // of all tensors
  const Chunk* chunks;      // starting with this launch's first
  NormSums sums;
  std::uint32_t first_chunk, count;  // of chunks
  std::uint32_t first;               // index of the first tensor
  bool after;                        // whether the updates have been launched
  std::byte* gradients[kMany];       // null: the tensor takes no part
};

__global__ void __launch_bounds__(kThreads, 4) measure_chunks(const __grid_constant__ MeasureArgs args) {
  alignas(16) __shared__ std::byte tiles[kWarps][kBlock * sizeof(double)];
  __shared__ double all_lanes[kWarps][kSumLanes];
  const std::uint32_t n = warp_of_grid();
  if (n >= args.count) return;
  const Chunk chunk = *global(args.chunks + n);
  std::byte* const gradient = args.gradients[chunk.tensor - args.first];
  if (gradient == nullptr) return;
  const int warp = warp_of_thread(), lane = lane_of_thread();
  double (&lanes)[kSumLanes] = all_lanes[warp];
  const TensorDesc& desc = *global(args.descs + chunk.tensor);
  const Before before{*global(args.sums.before + chunk.tensor), desc.compute == Compute::kDouble};
  const Values<kParameter> values{desc, desc.streams[kParameter]};
  const auto each_value = [&](const auto& visit) {
#pragma unroll 1
    for (std::int64_t begin = chunk.begin; begin < chunk.end; begin += kBlock) {
      const Block block(chunk, begin, lane, tiles[warp]);
      double x[kItems] = {};
      values.load(block, x);
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        const int place = values.place(lane, i);
        if (place < block.count) visit(i, begin + place, x[i]);
      }
    }
  };
  if (!args.after) return each_value([&](int, std::int64_t element, double x) { before.keep(element, x); });
  // One sum at a time, which needs fewer registers.
#pragma unroll 1
  for (int kind = NormSums::kOfUpdate; kind <= NormSums::kOfWeight; ++kind) {
    Squares squares;
    each_value([&](int i, std::int64_t element, double x) {
      squares.add(i, kind == NormSums::kOfUpdate ? before.update(element, x) : x);
    });
    const double sum = squares.fold(values, lane, lanes);
    if (lane == 0) args.sums.of_chunks[kind * args.sums.chunks + args.first_chunk + n] = sum;
  }
}

__global__ void __launch_bounds__(kThreads) measure_tensors(const NormSums sums) {
  __shared__ double lanes[kWarps][kSumLanes];
  const std::uint32_t n = warp_of_grid(), tensor = n / NormSums::kKinds;
  if (tensor >= sums.tensors) return;
  const std::uint32_t first = sums.first_chunk[tensor], end = sums.first_chunk[tensor + 1];
  const double* const of_chunks = sums.of_chunks + n % NormSums::kKinds * sums.chunks;
  const double total = sum(of_chunks + first, end - first, lane_of_thread(), lanes[warp_of_thread()]);
  if (lane_of_thread() == 0) sums.of_tensors[n] = total;
}

// Returns x. The compiler does not repeat what follows in each of the branches that it comes from.
GS_DEVICE float joined(float x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+f"(x));
#endif
  return x;
}
GS_DEVICE double joined(double x) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+d"(x));
#endif
  return x;
}

struct RowSumArgs {
  TensorDesc desc;  // of the gradient
  std::byte* gradient;
  RowSums sums;
  std::int64_t elements;
};

// One thread per element of the sums.
template <class T>
__global__ void __launch_bounds__(kThreads, 4) sum_rows(const __grid_constant__ RowSumArgs args) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= args.elements) return;
  const RowSums& sums = args.sums;
  const std::int64_t row = i / sums.length, column = i - row * sums.length;
  const auto value = [&](std::int64_t k) {
    const std::int64_t element = global(sums.places)[k] * sums.length + column;
    const DType dtype = args.desc.dtypes[kGradient];
    return joined(gradient_at<T>(dtype, global(args.gradient) + offset(args.desc, kGradient, element)));
  };
  const std::int64_t first = global(sums.first)[row], end = global(sums.first)[row + 1];
  T sum = value(first);
#pragma unroll 1
  for (std::int64_t k = first + 1; k < end; ++k) sum = sum + value(k);
  reinterpret_cast<T*>(global(sums.to))[i] = sum;
}

constexpr std::uint32_t blocks_for(std::uint32_t warps) { return (warps + kWarps - 1) / kWarps; }

template <class Args>
void launch(void (*kernel)(Args), Args& args, std::uint32_t warps, void* stream) {
  if (warps > 0) start(kernel, args, blocks_for(warps), kThreads, stream, "launching a norm");
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
    launch(&add_chunks<kTensors>, args, args.count, work.stream);
  }
}

void launch_chunks_of(const NormWork& work) {
  work.sums.tensors > kFew ? launch_chunks<kMany>(work) : launch_chunks<kFew>(work);
}

void launch_measures(const NormWork& work, const NormSums& sums, bool after) {
  static_assert(sizeof(MeasureArgs) <= kMostBytes);
  MeasureArgs args;
  args.descs = work.descs;
  args.sums = sums;
  args.after = after;
  for (std::uint32_t first = 0, last; first < sums.tensors; first = last) {
    last = sums.tensors - first < kMany ? sums.tensors : first + kMany;
    std::memcpy(args.gradients, work.gradients + first, (last - first) * sizeof(std::byte*));
    args.first = first;
    args.first_chunk = static_cast<std::uint32_t>(work.first_chunk[first]);
    args.count = static_cast<std::uint32_t>(work.first_chunk[last]) - args.first_chunk;
    args.chunks = work.chunks + args.first_chunk;
    launch(&measure_chunks, args, args.count, work.stream);
  }
}

}  // namespace

void launch_sums(const NormWork& work) {
  launch_chunks_of(work);
  Sums sums = work.sums;
  launch(&add_tensors, sums, sums.tensors, work.stream);
}

void launch_measure_before(const NormWork& work, const NormSums& sums) {
  NormWork gradients = work;
  gradients.sums.of_chunks = sums.of_chunks + NormSums::kOfGradient * sums.chunks;
  launch_chunks_of(gradients);
  launch_measures(work, sums, false);
}

void launch_measure_after(const NormWork& work, NormSums sums) {
  launch_measures(work, sums, true);
  launch(&measure_tensors, sums, NormSums::kKinds * sums.tensors, work.stream);
}

void launch_row_sums(const TensorDesc& desc, std::byte* gradient, const RowSums& sums, std::int64_t count,
                     void* stream) {
  RowSumArgs args{desc, gradient, sums, count * sums.length};
  const auto blocks = static_cast<std::uint32_t>((args.elements + kThreads - 1) / kThreads);
  if (blocks == 0) return;
  const bool doubles = desc.compute == Compute::kDouble;
  start(doubles ? &sum_rows<double> : &sum_rows<float>, args, blocks, kThreads, stream, "summing rows");
}

void load_sums(std::size_t tensors) {
  tensors > kFew ? load(&add_chunks<kMany>) : load(&add_chunks<kFew>);
  load(&add_tensors);
}

}  // namespace gradstep::cuda
