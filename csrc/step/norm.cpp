#include "step/norm.h"

#include <limits>
#include <numeric>

#include "step/layout.h"

namespace gradstep::step {

double global_norm(Backend& backend, const std::vector<Array>& arrays) {
  Update updates[2];  // that do nothing, but say what is computed in
  for (const Compute compute : {Compute::kFloat, Compute::kDouble})
    updates[static_cast<int>(compute)].key.compute = compute;
  std::vector<Job> jobs(arrays.size());
  std::vector<Layout> layouts(arrays.size());
  std::vector<std::int64_t> sizes(arrays.size());
  backend.set_limit(std::numeric_limits<double>::infinity());
  for (std::size_t i = 0; i < arrays.size(); ++i) {
    const Array& array = arrays[i];
    if (array.data == nullptr) continue;
    const Array* streams[kMaxStreams] = {&array, &array};
    layouts[i] = make_layout(streams, true);
    sizes[i] = size_of(array);
    jobs[i].update = &updates[static_cast<int>(compute_of(array.dtype))];
    jobs[i].streams[kGradient] = array.data;
    jobs[i].layout = layouts[i].plain() ? nullptr : &layouts[i];
    backend.lay_out(i, jobs[i], layouts[i]);
  }
  const std::int64_t elements = std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
  const Plan plan = make_plan(sizes.data(), sizes.size(), backend.grain(elements));
  backend.take(plan);
  backend.clip(plan, jobs.data(), elements);
  return backend.norm();
}

}  // namespace gradstep::step
