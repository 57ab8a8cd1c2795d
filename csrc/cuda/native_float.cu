#include "cuda/kernels.h"

namespace gradstep::cuda {

void launch_native_float(const Work& work) {
  rules::visit<rules::Bounding::kAlways>(work.key, LaunchNative<float>{work});
}

}  // namespace gradstep::cuda
