#include "bind/bind.h"
#include "bind/cpu_arrays.h"
#include "bind/gate.h"
#include "bind/snapshot.h"
#include "bind/step_result.h"
#include "bind/stepper.h"
#include "cpu/isa.h"

namespace gradstep::bind {
namespace {

// An array of a storage type, the scales of its blocks if it has any, and an array of values.
struct Coded {
  CpuArrays arrays[3];  // have the axes of tensors
  Array stored, values;
  float* scales = nullptr;

  // Encoding writes the first two, decoding the values.
  Coded(const py::object& codes, const std::optional<py::object>& blocks, const py::object& floats, bool encodes)
      : stored(encodes ? arrays[0].writable_view(codes, "codes", "", true) : arrays[0].view(codes, "codes", "", true)),
        values(encodes ? arrays[1].view(floats, "values", "") : arrays[1].writable_view(floats, "values", "")) {
    const std::int64_t size = stored.rank == 1 ? stored.shape[0] : -1;
    const auto packed_floats = [](const Array& of, std::int64_t length) {
      return of.dtype == DType::kFloat32 && of.rank == 1 && of.shape[0] == length && step::is_packed(of);
    };
    bool fits = info(stored.dtype).kind != CodecKind::kNative && has_scales(stored.dtype) == blocks.has_value() &&
                size >= 0 && step::is_packed(stored) && packed_floats(values, size);
    if (fits && blocks) {
      const Array of = encodes ? arrays[2].writable_view(*blocks, "scales", "") : arrays[2].view(*blocks, "scales", "");
      fits = packed_floats(of, blocks_of(size));
      scales = reinterpret_cast<float*>(of.data);
    }
    if (!fits) {
      throw WrongType("needs float16, bfloat16, or int8 or uint8 codes with a float32 scale for each " +
                      std::to_string(kBlock) + ", and as many float32 values, all of one axis and without gaps");
    }
  }

  float* floats() const { return reinterpret_cast<float*>(values.data); }
};

void decode(const py::object& stored, const std::optional<py::object>& scales, const py::object& values) {
  const Coded all(stored, scales, values, false);
  cpu::conversions().to<float>(all.stored.dtype).decode(all.stored.data, all.scales, all.stored.shape[0], all.floats());
}

// Rounds to nearest.
void encode(const py::object& values, const py::object& stored, const std::optional<py::object>& scales) {
  const Coded all(stored, scales, values, true);
  cpu::conversions()
      .to<float>(all.stored.dtype)
      .encode(all.floats(), all.stored.shape[0], nullptr, 0, all.stored.data, all.scales);
}

}  // namespace

void register_cpu(py::module_& m) {
  CpuArrays::initialize();
  m.attr("BLOCK") = kBlock;
  m.attr("PART") = kPart;
  m.attr("CHUNK") = kChunk;
  m.def(
      "check_array_class",
      [](const py::array& array, const std::string& name) { CpuArrays::check_array_class(array, name, ""); },
      py::arg("array"), py::arg("name"));
  m.def("add_tensor_type", &CpuArrays::add_tensor_type, py::arg("type"), py::arg("is_negative"),
        py::arg("increment_version"));
  m.def("first_overlap", &CpuArrays::first_overlap, py::arg("arrays"), py::arg("others"));
  using Zeros = CpuArrays::Zeros;
  py::class_<Zeros>(m, "Zeros", py::is_final())
      .def(py::init<const py::list&, const py::dtype&>(), py::arg("arrays"), py::arg("dtype"))
      .def("__len__", &Zeros::size)
      .def("__iter__", [](const Zeros& zeros) {
        py::list made;
        for (std::size_t i = 0; i < zeros.size(); ++i) made.append(zeros.make(i));
        return py::iter(made);
      });
  m.def("decode", &decode, py::arg("stored"), py::arg("scales"), py::arg("values"));
  m.def("encode", &encode, py::arg("values"), py::arg("stored"), py::arg("scales"));
  register_step_result(m);
  register_stepper<CpuArrays>(m);
  register_gate<CpuArrays>(m);
  register_snapshot(m);
  m.def(
      "global_norm",
      [](const Tree& tree) {
        CpuArrays arrays;
        return global_norm(arrays, tree, [] {});
      },
      py::arg("tree"));
}

}  // namespace gradstep::bind
