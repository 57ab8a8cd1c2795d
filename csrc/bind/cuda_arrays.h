#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bind/arrays.h"
#include "bind/dlpack.h"
#include "step/on_cuda.h"

namespace gradstep::bind {

// Arrays on a GPU, of any library: those with DLPack's C interface (torch), with __cuda_array_interface__ (CuPy, Numba)
// or with DLPack capsules. All arrays of one optimizer are on the same device.
class CudaArrays {
 public:
  std::unique_ptr<step::Backend> backend();

  // As in CpuArrays. Shape and strides are valid until the next call.
  Array view(pybind11::handle object, const std::string& kind, const std::string& name, bool codes = false);
  Array writable_view(pybind11::handle object, const std::string& kind, const std::string& name, bool codes = false);

  // A copy of the indices of a row gradient, which may be NumPy's or on a GPU, and are then waited for.
  step::IndexArray indices(pybind11::handle object, const std::string& name);

  static bool view_like(pybind11::handle, DType, Array&) { return false; }

  // Numbers are no gradients here: a copy to the device would wait for it.
  static pybind11::object number_as_array(pybind11::handle) { return {}; }

  static pybind11::object to_compare(const pybind11::object&, const Array& array) { return dlpack::shadow(array); }

  // Sets the stream of the next step.
  void use_stream(std::uintptr_t stream) {
    stream_ = reinterpret_cast<void*>(stream);
    backend_->use(device_, stream_);
  }
  int device() const { return device_; }
  // Waits until all work of the device is done.
  void wait() const;
  bool is_capturing() const { return backend_->is_capturing(); }

  // Versions of tensors on a GPU are not kept.
  static bool is_tensor(pybind11::handle) { return false; }
  struct Written {
    static void add(pybind11::handle) {}
    static void publish() {}
  };

  // Empty: steps check arrays in turn, see kSpotChecks.
  struct Seal {
    static constexpr bool holds() { return true; }
  };

  // The properties of an array when the optimizer was made.
  class Watched {
   public:
    Watched(pybind11::object the_object, const Array& the_array, const std::string* the_kind, std::size_t the_tensor,
            Role)
        : object(std::move(the_object)), array(the_array), kind(the_kind), tensor(the_tensor) {}

    pybind11::object object;
    step::KeptArray array;
    const std::string* kind;  // its name in messages, before the tensor's name
    std::size_t tensor;

    Array view() const { return array.view(); }
    static Seal seal() { return {}; }

    int traverse(visitproc visit, void* arg) const {
      Py_VISIT(object.ptr());
      return 0;
    }
    static void check_closely(const std::string&) {}
  };

  static constexpr bool kOnDevice = true;

  // There are none on a device.
  struct Zeros {
    static std::size_t size() { return 0; }
    static Array view(std::size_t) { return {}; }
    static pybind11::object make(std::size_t) { return {}; }
  };
  static const Zeros* as_zeros(pybind11::handle) { return nullptr; }

  // Checking where the memory of a thousand tensors is takes longer than stepping them: each step checks this many, in
  // turn. Only those with a C interface, because other libraries do not exchange an array's memory.
  static constexpr int kSpotChecks = 8;
  bool is_unmoved(const Watched& watched);

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

  step::OnCuda* backend_ = nullptr;
  int device_ = -1;    // unknown
  std::string first_;  // the array that determined it
  void* stream_ = nullptr;
  std::vector<std::pair<pybind11::object, const dlpack::Exchange*>> interfaces_;  // by type; null: the type has none
  dlpack::Axes axes_;                                                             // of the last array
};

}  // namespace gradstep::bind
