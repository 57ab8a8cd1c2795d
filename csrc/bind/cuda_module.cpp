#include "bind/cuda_arrays.h"
#include "bind/entry.h"
#include "bind/stepper.h"
#include "cuda/runtime.h"

#if defined(GRADSTEP_EMULATED_CUDA)
#include <cuda_runtime.h>
#endif

namespace py = pybind11;

namespace gradstep::bind {
namespace {

std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

}  // namespace
}  // namespace gradstep::bind

GRADSTEP_MODULE(_cuda, m) {
  using namespace gradstep;
  using bind::CudaArrays;
  m.doc() = "The CUDA backend of gradstep. Importing it does not call CUDA.";

  m.def("build_info", [] {
    const cuda::Versions found = cuda::versions();
    py::dict info;
    info["compiler"] = GRADSTEP_CUDA_COMPILER;
    info["architectures"] = GRADSTEP_CUDA_ARCHITECTURES;
    info["runtime"] = bind::version(found.runtime);
    info["driver"] = found.driver == 0 ? "none" : bind::version(found.driver);
    return info;
  });
  m.def("device_count", &cuda::device_count);
  auto stepper = bind::register_stepper<CudaArrays>(m);
  m.def(
      "global_norm",
      [](const bind::Tree& tree, const py::function& stream_of) {
        CudaArrays arrays;
        return bind::global_norm(arrays, tree, [&] {
          arrays.use_stream(stream_of(arrays.device()).cast<std::uintptr_t>());
          if (arrays.is_capturing())
            throw std::runtime_error("global_norm waits for the device and cannot be captured in a graph");
        });
      },
      py::arg("tree"), py::arg("stream_of"));
  stepper.def(
      "use_stream", [](bind::Stepper<CudaArrays>& s, std::uintptr_t stream) { s.arrays().use_stream(stream); },
      py::arg("stream"));
  stepper.def("wait", [](bind::Stepper<CudaArrays>& s) { bind::without_gil([&] { s.arrays().wait(); }); });
  stepper.def_property_readonly("is_capturing", [](bind::Stepper<CudaArrays>& s) { return s.arrays().is_capturing(); });
  stepper.def_property_readonly("device", [](bind::Stepper<CudaArrays>& s) { return s.arrays().device(); });

#if defined(GRADSTEP_EMULATED_CUDA)
  // For tests: memory of the emulated devices, and counts of calls.
  m.def("allocate", [](std::size_t size, int device) {
    void* data = nullptr;
    const cuda::OnDevice on_device(device);
    cudaMalloc(&data, size);
    return reinterpret_cast<std::uintptr_t>(data);
  });
  m.def("release", [](std::uintptr_t data) { cudaFree(reinterpret_cast<void*>(data)); });
  m.def("fail", [](bool failing) { emulated::machine.failing = failing; });
  m.def("begin_capture", &emulated::begin_capture);
  m.def("end_capture", &emulated::end_capture);
  m.def("replay", &emulated::replay);
  m.def("counts", [] {
    const auto& machine = emulated::machine;
    py::dict counts;
    counts["launches"] = machine.launches;
    counts["allocations"] = machine.allocations;
    counts["copies"] = machine.copies;
    counts["waits"] = machine.waits;
    counts["stream"] = reinterpret_cast<std::uintptr_t>(machine.last_stream);
    return counts;
  });
#endif
}
