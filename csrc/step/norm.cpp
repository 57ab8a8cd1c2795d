#include "step/norm.h"

#include <algorithm>
#include <limits>

#include "step/layout.h"

namespace gradstep::step {

void Gradients::lay_out(Backend& backend, std::size_t tensor, const Array& gradient) {
  const std::size_t size = std::max(jobs.size(), tensor + 1);
  jobs.resize(size);
  layouts.resize(size);
  const Array* streams[kMaxStreams] = {&gradient, &gradient};
  Layout& layout = layouts[tensor] = make_layout(streams, true);
  jobs[tensor].streams[kGradient] = gradient.data;
  jobs[tensor].layout = layout.plain() ? nullptr : &layout;
  backend.lay_out_gradient(tensor, jobs[tensor], layout);
}

double global_norm(Backend& backend, const std::vector<Array>& arrays) {
  Update updates[2];  // that do nothing, but say what is computed in
  for (const Compute compute : {Compute::kFloat, Compute::kDouble}) {
    updates[static_cast<int>(compute)].key.compute = compute;
  }
  Gradients gradients;
  std::vector<std::int64_t> sizes(arrays.size());
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    if (arrays[i].data == nullptr) continue;
    gradients.lay_out(backend, i, arrays[i]);
    gradients.jobs[i].update = &updates[static_cast<int>(compute_of(arrays[i].dtype))];
    sizes[i] = size_of(arrays[i]);
  }
  gradients.jobs.resize(arrays.size());
  std::int64_t elements = 0, bytes = 0;
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    elements += sizes[i];
    if (arrays[i].data != nullptr) bytes += sizes[i] * size_of(compute_of(arrays[i].dtype));
  }
  const Plan plan = make_plan(sizes.data(), sizes.size(), backend.grain(elements));
  backend.take(plan);
  backend.set_limit(std::numeric_limits<double>::infinity());
  backend.clip(plan, gradients.jobs.data(), bytes);
  return backend.norm();
}

}  // namespace gradstep::step
