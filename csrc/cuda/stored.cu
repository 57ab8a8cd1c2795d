#include "cuda/kernels.h"

namespace gradstep::cuda {

void launch_stored(const Work& work) { rules::visit<rules::Bounding::kAlways>(work.key, LaunchStored{work}); }

}  // namespace gradstep::cuda
