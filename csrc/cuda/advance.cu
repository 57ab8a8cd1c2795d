#include <cstring>
#include <new>

#include "cuda/check.h"
#include "cuda/launch.h"
#include "cuda/sums.h"

// The launch that precedes the update kernels. It finishes the gradient pass, advances the clocks, and computes each
// tensor's step scalars as the host would: in double, with the same code.
namespace gradstep::cuda {
namespace {

// Visitor for rules::visit().
struct Prepare {
  const double* options;
  rules::Clock& clock;
  double factor;
  std::byte* to;

  template <class ElementUpdate>
  GS_INLINE void visit() const {
    const auto& common = *reinterpret_cast<const rules::Common::Options*>(options);
    const auto& own =
        *reinterpret_cast<const typename ElementUpdate::Options*>(options + sizeof common / sizeof(double));
    static_assert(sizeof common + sizeof own <= rules::kMaxOptions * sizeof(double));
    static_assert(sizeof(Step<ElementUpdate>) <= kMaxStep);
    auto& step = *reinterpret_cast<Step<ElementUpdate>*>(to);
    static_cast<StorePolicy&>(step) = StorePolicy(common, clock.t);
    rules::advance_average(common, clock);
    new (step.bytes) ElementUpdate(common, own, clock, factor);
  }
};

__global__ void __launch_bounds__(kThreads) advance(const __grid_constant__ AdvanceArgs args) {
  __shared__ double lanes[kSumLanes];
  __shared__ GradientPass pass;
  const DeviceState& state = args.state;
  const bool passes = args.sums.of_tensors != nullptr;
  const PassOptions asked = args.captured == nullptr ? args.asked : args.captured->asked;
  if (warp_of_thread() == 0) {
    GradientPass result = no_pass(args.grad_scale);
    if (passes) {
      const Sums& sums = args.sums;
      const double squares = sum(sums.of_tensors, sums.tensors, lane_of_thread(), lanes);
      const std::uint32_t bad = first_of(sums.tensors, [&](std::uint32_t n) { return sums.nonfinite[n] >= 0; });
      const Position nonfinite = bad == sums.tensors ? kNowhere : Position{bad, sums.nonfinite[bad]};
      result = evaluate_pass(squares, largest(sums.of_tensors, sums.tensors), nonfinite, asked, args.grad_scale);
    }
    if (lane_of_thread() == 0) pass = result;
  }
  __syncthreads();
  const std::uint32_t place = blockIdx.x * kThreads + threadIdx.x, tensor = args.first + place;
  if (place == 0 && args.is_first) {
    if (passes) *state.pass = pass;
    if (state.taken != nullptr && !pass.skip) ++*state.taken;
  }
  if (pass.skip || place >= args.count || (args.active[place / 32] >> place % 32 & 1) == 0) return;
  const std::uint32_t number = state.groups[tensor];
  const Group* const group =
      args.captured == nullptr ? &args.groups[number - args.first_group] : args.captured->groups() + number;
  rules::Key key = group->key;
  key.compute = state.computes[tensor];
  rules::Clock& clock = state.clocks[tensor];
  ++clock.t;
  const double factor = pass.factor_of(passes ? args.sums.of_tensors[tensor] : 0, asked, args.grad_scale);
  rules::visit<rules::Bounding::kAlways>(key, Prepare{group->options, clock, factor, state.steps + tensor * kMaxStep});
}

struct Values {
  double* to;
  int count;
  double of[rules::kMaxOptions];
};

__global__ void set(const __grid_constant__ Values values) {
  const auto i = static_cast<int>(threadIdx.x);
  if (i < values.count) values.to[i] = values.of[i];
}

}  // namespace

void launch_advance(const AdvanceWork& work) {
  static_assert(sizeof(AdvanceArgs) <= kMostBytes);
  AdvanceArgs args{work.state, work.captured, work.asked, work.grad_scale, work.sums, true, 0, 0, 0, {}, {}};
  std::uint32_t tensor = 0;
  do {
    args.first = tensor;
    args.first_group = tensor < work.tensors ? work.group_of[tensor] : 0;
    bool any = args.is_first;
    std::memset(args.active, 0, sizeof args.active);
    for (; tensor < work.tensors; ++tensor) {
      const std::uint32_t place = tensor - args.first;
      if (place == args.kTensors || work.group_of[tensor] - args.first_group >= args.kGroups) break;
      if (work.gradients[tensor] == nullptr) continue;
      args.active[place / 32] |= 1u << place % 32;
      any = true;
    }
    args.count = tensor - args.first;
    for (std::uint32_t i = 0; i < args.kGroups && args.first_group + i < work.groups.size(); ++i) {
      args.groups[i] = work.groups[args.first_group + i];
    }
    const std::uint32_t blocks = args.count == 0 ? 1 : (args.count + kThreads - 1) / kThreads;
    if (any) start(&advance, args, blocks, kThreads, work.stream, "launching a step");
    args.is_first = false;
  } while (tensor < work.tensors);
}

void load_advance() { load(&advance); }

void set_captured(double* to, const double* values, std::size_t count, void* stream) {
  static_assert(rules::kMaxOptions <= kWarp);
  Values args{to, static_cast<int>(count), {}};
  std::memcpy(args.of, values, count * sizeof(double));
  start(&set, args, 1, kWarp, stream, "launching a change of options");
}

}  // namespace gradstep::cuda
