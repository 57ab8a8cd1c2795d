#pragma once

// The update kernels: one for native tensors, and one for tensors with a stream of another type. Both process a chunk
// block by block, with one warp per block.
#include <cuda_runtime.h>

#include <cstring>
#include <type_traits>
#include <utility>

#include "cuda/check.h"
#include "cuda/lane.h"
#include "cuda/launch.h"
#include "cuda/stored.h"

namespace gradstep::cuda {
namespace {

// Whether a rule uses a stream: one that is read and, if it is a state, that the variant keeps.
template <class ElementUpdate, int s>
constexpr bool kWalks = kStreams[s].read && (!is_state(s) || ElementUpdate::keeps(s - kFirstState));

template <class Visit, int... s>
GS_DEVICE void each_number(const Visit& visit, std::integer_sequence<int, s...>) {
  (visit(std::integral_constant<int, s>()), ...);
}

// Calls visit(s) for each stream that a rule uses; s is a std::integral_constant.
template <class ElementUpdate, class Visit>
GS_DEVICE void each_stream(const Visit& visit) {
  each_number(
      [&](auto s) {
        if constexpr (kWalks<ElementUpdate, s>) visit(s);
      },
      std::make_integer_sequence<int, kKernelStreams>());
}

// Calls visit(s) for each of these streams that a step writes.
template <class ElementUpdate, class Visit>
GS_DEVICE void each_written(const Visit& visit) {
  each_stream<ElementUpdate>([&](auto s) {
    if constexpr (kStreams[s].written) visit(s);
  });
}

// The byte offsets of an element in the streams that a rule uses, and with kMore in the copy and the average. Indices
// are divided once.
template <class ElementUpdate, bool kMore>
GS_DEVICE void offsets(const TensorDesc& desc, std::int64_t index, std::int64_t (&bytes)[kMaxStreams]) {
  const auto each_used = [](const auto& visit) {
    each_number(
        [&](auto s) {
          if constexpr (s < kCopy ? kWalks<ElementUpdate, s> : kMore) visit(s);
        },
        std::make_integer_sequence<int, kMaxStreams>());
  };
  each_used([&](auto s) { bytes[s] = desc.strided[s] ? 0 : index * desc.item_sizes[s]; });
  if (desc.strided_layout == nullptr) return;
  const auto rank = static_cast<int>(*global(desc.strided_layout));
  const std::int64_t *const shape = global(desc.strided_layout) + 1, *const strides = shape + rank;
#pragma unroll 1
  for (int axis = rank - 1; axis >= 0; --axis) {
    const std::int64_t outer = axis > 0 ? index / shape[axis] : 0, inner = index - outer * shape[axis];
    each_used([&](auto s) {
      if (desc.strided[s]) bytes[s] += (axis > 0 ? inner : row_of(desc, s, inner)) * strides[s * rank + axis];
    });
    index = outer;
  }
}

template <class ElementUpdate, class T, int... k>
GS_DEVICE void update(const ElementUpdate& element, T (&x)[kKernelStreams][kItems], int i,
                      std::integer_sequence<int, k...>) {
  element(x[kParameter][i], x[kGradient][i], x[kFirstState + k][i]...);
}
// Updates item `i` of all streams; a state that is not kept is a dummy argument.
template <class ElementUpdate, class T>
GS_DEVICE void update(const ElementUpdate& element, T (&x)[kKernelStreams][kItems], int i) {
  update(element, x, i, std::make_integer_sequence<int, ElementUpdate::kStates>());
}

// The work of a thread block. There is none if the gradient is null.
template <class ElementUpdate>
struct Task {
  Chunk chunk;
  std::byte* gradient;
  const TensorDesc& desc;
  const Step<ElementUpdate>& step;
  bool skips;

  template <int kTensors>
  GS_DEVICE explicit Task(const Args<ElementUpdate, kTensors>& args)
      : chunk(*global(args.chunks + blockIdx.x)),
        gradient(args.gradients[chunk.tensor - args.first]),
        desc(*global(args.descs + chunk.tensor)),
        step(*reinterpret_cast<const Step<ElementUpdate>*>(global(args.steps + chunk.tensor * kMaxStep))) {
    skips = args.pass != nullptr && global(args.pass)->skip;
  }

  GS_DEVICE std::byte* stream(int s) const { return s == kGradient ? gradient : desc.streams[s]; }

  GS_DEVICE const ElementUpdate& element() const { return step.element(); }

  // Sets the gradients of the warp's blocks, which are stored in the compute type, to zero.
  GS_DEVICE void clear_gradient() const {
    using T = typename ElementUpdate::T;
    __syncwarp();  // another lane may still read them
    for (std::int64_t begin = chunk.begin + warp_of_thread() * kBlock; begin < chunk.end; begin += kWarps * kBlock) {
      const std::int64_t end = chunk.end - begin < kBlock ? chunk.end : begin + kBlock;
#pragma unroll 1
      for (std::int64_t i = begin + lane_of_thread(); i < end; i += kWarp) {
        *reinterpret_cast<T*>(global(gradient) + offset(desc, kGradient, i)) = 0;
      }
    }
  }
};

// Whether a tensor has streams besides those that every rule has.
GS_DEVICE bool has_more(const TensorDesc& desc) {
  return desc.streams[kCopy] != nullptr || desc.streams[kAverage] != nullptr;
}

// Writes the copy and the average, at these offsets, of an element whose parameter is computed in doubles.
GS_DEVICE void write_more(const TensorDesc& desc, const StorePolicy& step, const std::int64_t (&bytes)[kMaxStreams],
                          double p) {
  if (desc.streams[kCopy] != nullptr) {
    std::byte* const item = global(desc.streams[kCopy]) + bytes[kCopy];
    if (is_native(desc.dtypes[kCopy], Compute::kDouble)) {
      *reinterpret_cast<double*>(item) = p;
    } else {
      *reinterpret_cast<float*>(item) = static_cast<float>(p);
    }
  }
  if (desc.streams[kAverage] != nullptr) {
    auto& average = *reinterpret_cast<double*>(global(desc.streams[kAverage]) + bytes[kAverage]);
    average = rules::blend(step.ema, average, 1 - step.ema, p);
  }
}

// Sets the values beyond the end of a block to zero.
GS_DEVICE void clear(float (&x)[kItems], const Block& block) {
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    if (LaneSlice<float>::place(block.lane, i) >= block.count) x[i] = 0;
  }
}

// Tensors that a rule can work on where they lie. Whole blocks without gaps go in full width, the rest item by item. So
// do those that are computed in doubles and have a gradient of another type.
template <class ElementUpdate, int kTensors>
__global__ void __launch_bounds__(kThreads, kMinBlocks<ElementUpdate>)
    native(const __grid_constant__ Args<ElementUpdate, kTensors> args) {
  using T = typename ElementUpdate::T;
  using Values = Raw<T, sizeof(T), T>;
  constexpr bool kConverts = kComputeOf<T> == Compute::kDouble;
  const Task<ElementUpdate> task(args);
  if (task.gradient == nullptr) return;
  const Chunk chunk = task.chunk;
  const TensorDesc& desc = task.desc;
  const ElementUpdate element = task.element();

  std::byte* streams[kKernelStreams];
  bool in_one_piece = !kConverts || !has_more(desc);
  each_stream<ElementUpdate>([&](auto s) {
    streams[s] = global(task.stream(s));
    in_one_piece = in_one_piece && !desc.strided[s] && Values::aligned(streams[s]);
    if constexpr (kConverts && s == kGradient)
      in_one_piece = in_one_piece && is_native(desc.dtypes[s], Compute::kDouble);
  });
  const int lane = lane_of_thread(), warp = warp_of_thread();
  const std::int64_t end_of_updates = task.skips ? 0 : chunk.end;
  for (std::int64_t begin = chunk.begin + warp * kBlock; begin < end_of_updates; begin += kWarps * kBlock) {
    if (in_one_piece && chunk.end - begin >= kBlock) {
      T x[kKernelStreams][kItems] = {};
      each_stream<ElementUpdate>([&](auto s) { Values::load(reinterpret_cast<T*>(streams[s]) + begin, lane, x[s]); });
#pragma unroll
      for (int i = 0; i < kItems; ++i) update(element, x, i);
      each_written<ElementUpdate>([&](auto s) { Values::store(reinterpret_cast<T*>(streams[s]) + begin, lane, x[s]); });
    } else {
      const std::int64_t end = chunk.end - begin < kBlock ? chunk.end : begin + kBlock;
#pragma unroll 1
      for (std::int64_t i = begin + lane; i < end; i += kWarp) {
        T x[kKernelStreams][kItems] = {};
        T* at[kKernelStreams];
        std::int64_t bytes[kMaxStreams];
        offsets<ElementUpdate, kConverts>(desc, i, bytes);
        each_stream<ElementUpdate>([&](auto s) {
          std::byte* const item = streams[s] + bytes[s];
          at[s] = reinterpret_cast<T*>(item);
          if constexpr (kConverts && s == kGradient) {
            x[s][0] = gradient_at<T>(desc.dtypes[s], item);
          } else {
            x[s][0] = *at[s];
          }
        });
        update(element, x, 0);
        each_written<ElementUpdate>([&](auto s) { *at[s] = x[s][0]; });
        if constexpr (kConverts) write_more(desc, task.step, bytes, x[kParameter][0]);
      }
    }
  }
  if (args.clears) task.clear_gradient();
}

// Updates tensors of which at least one stream is not stored as float, or that have a copy or an average.
template <class ElementUpdate, int kTensors>
__global__ void __launch_bounds__(kThreads, kMinBlocksStored<ElementUpdate>)
    stored(const __grid_constant__ Args<ElementUpdate, kTensors> args) {
  __shared__ std::uint32_t places[kKernelStreams][kGroup], groups[kKernelStreams][kChunk / kBlock][kBlock / kGroup];
  alignas(16) __shared__ std::byte tiles[kWarps][kBlock * sizeof(float)];
  const Task<ElementUpdate> task(args);
  if (task.gradient == nullptr) return;
  const Chunk chunk = task.chunk;
  // A copy in registers: the compiler would reload a description in memory after each store.
  const TensorDesc desc = task.desc;
  const Step<ElementUpdate>& step = task.step;
  const ElementUpdate element = task.element();

  const auto stochastic_in = [&](int s) {
    return (kRoundedStreams >> s & 1) != 0 && is_stochastic(task.desc.dtypes[s], step.stochastic);
  };

  // Each thread draws four words of the places and four of the groups for one stream.
  static_assert(kKernelStreams * kPlaceCounters <= kThreads && kChunk / kBlock == kPlaceCounters &&
                kBlock == 4 * kGroup);
  const auto drawn = static_cast<int>(threadIdx.x / kPlaceCounters), n = static_cast<int>(threadIdx.x % kPlaceCounters);
  if (drawn < kKernelStreams && stochastic_in(drawn)) {
    const NoiseKey key{step.seed, step.step, chunk.tensor, static_cast<std::uint32_t>(drawn)};
    const int drop = 32 - random_bits(task.desc.dtypes[drawn]);
    const bool beyond = chunk.begin + n * kBlock >= chunk.end;
    const std::int64_t block = beyond ? 0 : place_of(task.desc, chunk.begin + n * kBlock) / kBlock;
    const FourWords p = draw(key, static_cast<std::uint32_t>(n), upper_half(key, kOfPlace, 0));
    const FourWords g = draw(key, static_cast<std::uint32_t>(block), upper_half(key, kOfGroup, block));
    const std::uint32_t of_places[] = {p.w0, p.w1, p.w2, p.w3}, of_groups[] = {g.w0, g.w1, g.w2, g.w3};
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      places[drawn][w * kPlaceCounters + n] = of_places[w] >> drop;
      groups[drawn][n][w] = of_groups[w] >> drop;
    }
  }
  __syncthreads();

  // Whether blocks of the gradient are not blocks of the tensor, so that their random bits are drawn one by one.
  const bool splits_blocks = desc.rows != nullptr && desc.row_length % kBlock != 0;
  const int lane = lane_of_thread(), warp = warp_of_thread();
  const std::int64_t end_of_updates = task.skips ? 0 : chunk.end;
  for (std::int64_t begin = chunk.begin + warp * kBlock; begin < end_of_updates; begin += kWarps * kBlock) {
    const Block block(chunk, begin, lane, tiles[warp]);
    const std::uint32_t* each_word = nullptr;
    const auto rounding_of = [&](int s) {
      return StochasticRounding{
          stochastic_in(s), {places[s], groups[s][(begin - chunk.begin) / kBlock], lane}, each_word};
    };
    const auto scale_of = [&](int s) {
      return has_scales(desc.dtypes[s]) ? global(desc.scales[s] + place_of(desc, begin) / kBlock) : nullptr;
    };

    std::uint32_t raw[kKernelStreams][kItems];
    float x[kKernelStreams][kItems] = {};
    float scales[kKernelStreams] = {};
    each_stream<ElementUpdate>([&](auto s) {
      if (may_have_scales<ElementUpdate>(s) && has_scales(desc.dtypes[s])) scales[s] = *scale_of(s);
    });
    each_stream<ElementUpdate>([&](auto s) { fetch(desc, s, task.stream(s), block, raw[s]); });
    each_stream<ElementUpdate>([&](auto s) {
      visit_stored<ElementUpdate, s>(desc.dtypes[s], [&](auto how) { how.decode(raw[s], scales[s], x[s]); });
    });

#pragma unroll
    for (int i = 0; i < kItems; ++i) update(element, x, i);

    const auto write = [&](auto s, float (&values)[kItems]) {
      std::uint32_t words[kItems] = {};
      if (splits_blocks && stochastic_in(s)) {
        const NoiseKey key{step.seed, step.step, chunk.tensor, static_cast<std::uint32_t>(s)};
        each_word = draw_each(task.desc, key, places[s], 32 - random_bits(task.desc.dtypes[s]), block);
      }
      visit_stored<ElementUpdate, s>(desc.dtypes[s],
                                     [&](auto how) { how.encode(values, block, rounding_of(s), scale_of(s), words); });
      put(desc, s, desc.streams[s], block, words);
      // The copy and the average are of the parameter as it is stored.
      if (s == kParameter && has_more(desc)) {
        visit_stored<ElementUpdate, s>(desc.dtypes[s], [&](auto how) { how.decode(words, 0, values); });
      }
    };
    each_written<ElementUpdate>([&](auto s) {
      if (block.count < kBlock) clear(x[s], block);
      write(s, x[s]);
    });
    if (desc.streams[kCopy] != nullptr) write(std::integral_constant<int, kCopy>(), x[kParameter]);
    if (desc.streams[kAverage] != nullptr) {
      std::uint32_t words[kItems];
      fetch(desc, kAverage, desc.streams[kAverage], block, words);
      const auto keep = static_cast<float>(step.ema), take = static_cast<float>(1 - step.ema);
#pragma unroll
      for (int i = 0; i < kItems; ++i) {
        words[i] = bits_of(rules::blend(keep, float_of(words[i]), take, x[kParameter][i]));
      }
      put(desc, kAverage, desc.streams[kAverage], block, words);
    }
  }
  if (args.clears) task.clear_gradient();
}

// Launches consecutive tensors, as many per launch as the arguments have room for, with one thread block per chunk.
template <class ElementUpdate, int kTensors>
void launch_chunks(const Work& work, void (*kernel)(Args<ElementUpdate, kTensors>)) {
  static_assert(sizeof(Args<ElementUpdate, kTensors>) <= kMostBytes);
  if (work.loads) return load(kernel);
  Args<ElementUpdate, kTensors> args;
  args.descs = work.descs;
  args.steps = work.steps;
  args.pass = work.pass;
  args.clears = work.clears;
  const std::size_t tensors = work.gradients.size();
  for (std::size_t first = 0, last; first < tensors; first = last) {
    last = tensors - first < kTensors ? tensors : first + kTensors;
    args.first = static_cast<std::uint32_t>(first);
    args.chunks = work.chunks + work.first_chunk[first];
    std::memcpy(args.gradients, &work.gradients[first], (last - first) * sizeof(std::byte*));
    const auto blocks = static_cast<std::uint32_t>(work.first_chunk[last] - work.first_chunk[first]);
    if (blocks > 0) start(kernel, args, blocks, kThreads, work.stream, "launching a step");
  }
}

// Visitors for rules::visit(): they launch the kernel of an update that has their compute type.
template <class T>
struct LaunchNative {
  const Work& work;

  template <class ElementUpdate>
  void visit() const {
    if constexpr (std::is_same_v<typename ElementUpdate::T, T>) {
      work.gradients.size() > kFew ? launch_chunks(work, &native<ElementUpdate, kMany>)
                                   : launch_chunks(work, &native<ElementUpdate, kFew>);
    }
  }
};

struct LaunchStored {
  const Work& work;

  template <class ElementUpdate>
  void visit() const {
    if constexpr (std::is_same_v<typename ElementUpdate::T, float>) launch_chunks(work, &stored<ElementUpdate, kMany>);
  }
};

}  // namespace
}  // namespace gradstep::cuda
