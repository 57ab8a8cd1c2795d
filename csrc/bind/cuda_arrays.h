#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bind/arrays.h"
#include "bind/dlpack.h"
#include "step/on_cuda.h"

namespace gradstep::bind {

// Arrays on a GPU, of whatever library: those that show themselves by DLPack's C interface (torch), by
// __cuda_array_interface__ (CuPy, Numba) or by a DLPack capsule. All of one optimizer lie on the same device.
class CudaArrays {
 public:
  std::unique_ptr<step::Backend> backend();

  // As of NumPyArrays. Shape and strides are good until the next call.
  Array view(pybind11::handle object, const std::string& kind, const std::string& name, bool codes = false);
  Array writable_view(pybind11::handle object, const std::string& kind, const std::string& name, bool codes = false);

  // A NumPy array of the same addresses, which nobody may read.
  static pybind11::object to_compare(const pybind11::object& object, const Array& array);

  // The stream of the next step.
  void use_stream(std::uintptr_t stream) {
    stream_ = reinterpret_cast<void*>(stream);
    backend_->use(device_, stream_);
  }
  int device() const { return device_; }
  // Until all that was sent to the device is done.
  void wait() const;
  bool is_capturing() const { return backend_->is_capturing(); }

  // What an array was when the optimizer was made.
  class Watched {
   public:
    Watched(pybind11::object the_object, const Array& the_array, std::string the_name, Role)
        : object(std::move(the_object)), array(the_array), name(std::move(the_name)) {}

    pybind11::object object;
    step::KeptArray array;
    std::string name;

    int traverse(visitproc visit, void* arg) const {
      Py_VISIT(object.ptr());
      return 0;
    }

    void check_unmoved() const {}
  };

  static constexpr bool kOnDevice = true;

  // To ask a thousand tensors where their memory is would take longer than to step them: each step asks these many, in
  // turn. Only those with a C interface: of other libraries' arrays the memory stays.
  static constexpr int kSpotChecks = 8;
  void spot_check(const Watched& watched);

  // For the garbage collector.
  int traverse(visitproc visit, void* arg) const {
    for (const auto& [type, interface] : interfaces_) Py_VISIT(type.ptr());
    return 0;
  }

 private:
  struct ArrayInfo;

  Array look(pybind11::handle object, const std::string& kind, const std::string& name, bool codes, bool written);
  const dlpack::Exchange* interface_of(pybind11::handle object);
  bool see_by_exchange(pybind11::handle object, ArrayInfo& info);
  bool see_by_interface(pybind11::handle object, ArrayInfo& info);
  bool see_by_capsule(pybind11::handle object, ArrayInfo& info);
  void from_dlpack(const dlpack::Tensor& tensor, ArrayInfo& info);
  void pack(dlpack::Type type);

  step::OnCuda* backend_ = nullptr;
  int device_ = -1;    // none yet
  std::string first_;  // the array that settled it
  void* stream_ = nullptr;
  std::vector<std::pair<pybind11::object, const dlpack::Exchange*>> interfaces_;  // of types; null: it has none
  std::vector<std::int64_t> shape_, strides_;
};

}  // namespace gradstep::bind
