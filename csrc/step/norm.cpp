#include "step/norm.h"

#include "step/layout.h"

namespace gradstep::step {

Layout norm_layout(const Array& gradient, Compute compute) {
  const Array* streams[kMaxStreams] = {&gradient, &gradient};
  return make_layout(streams, compute, true);
}

double global_norm(Backend& backend, const std::vector<Array>& arrays) {
  std::byte* const none[kMaxStreams] = {};
  std::vector<std::byte*> gradients;
  for (const Array& array : arrays) {
    const bool active = array.data != nullptr;
    const Compute compute = compute_of(array.dtype);
    backend.add_tensor({active ? size_of(array) : 0, 0, compute}, {});
    if (active) backend.set_layout(gradients.size(), none, {}, norm_layout(array, compute), size_of(array));
    gradients.push_back(array.data);
  }
  return backend.norm(gradients.data());
}

}  // namespace gradstep::step
