#include "cuda/kernels.h"

namespace gradstep::cuda {

void launch_native_double(const Work& work) {
  rules::visit<rules::Bounding::kAlways>(work.key, LaunchNative<double>{work});
}

}  // namespace gradstep::cuda
