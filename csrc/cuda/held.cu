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

}  // namespace

void advance_held(const Work& work) { rules::visit(work.key, LaunchAdvance{work}); }

void set_held(double* options, const std::vector<double>& values, void* stream) {
  Values args{options, static_cast<int>(values.size()), {}};
  std::memcpy(args.of, values.data(), values.size() * sizeof(double));
  void* parameters[] = {&args};
  check(cudaLaunchKernel(&set, dim3(1), dim3(kWarp), parameters, 0, static_cast<cudaStream_t>(stream)),
        "the change of an option");
  static_assert(rules::kMaxOptions <= kWarp);
}

}  // namespace gradstep::cuda
