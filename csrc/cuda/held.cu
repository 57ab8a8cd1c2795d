#include "cuda/kernels.h"

namespace gradstep::cuda {
namespace {

struct Values {
  double* to;
  int count;
  double of[rules::kMaxOptions];
};

__global__ void set(const __grid_constant__ Values values) {
  const auto i = static_cast<int>(threadIdx.x);
  if (i < values.count) values.to[i] = values.of[i];
}

__global__ void count(std::int64_t* taken) { ++*taken; }

}  // namespace

void advance_held(const Work& work) { rules::visit<rules::Flushing::kAlways>(work.key, LaunchAdvance{work}); }

void count_held(const Held& held, void* stream) {
  load(&count);
  std::int64_t* taken = held.taken;
  start(&count, taken, 1, 1, stream, "a step's launch");
}

void set_held(double* options, const std::vector<double>& values, void* stream) {
  Values args{options, static_cast<int>(values.size()), {}};
  std::memcpy(args.of, values.data(), values.size() * sizeof(double));
  start(&set, args, 1, kWarp, stream, "the change of an option");
  static_assert(rules::kMaxOptions <= kWarp);
}

}  // namespace gradstep::cuda
