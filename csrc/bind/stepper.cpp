#include "step/stepper.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

#include "bind/bind.h"
#include "cpu/isa.h"
#include "step/on_cpu.h"

namespace py = pybind11;

namespace gradstep::bind {
namespace {

using step::Array;
using step::WrongType;
using Options = std::map<std::string, double>;

// Two arrays whose extents meet, and what to say if they share memory.
using Suspect = std::tuple<py::object, py::object, std::string>;

// The types of parameters and gradients, then those of codes, which are nothing without their scales.
constexpr int kArrayTypes = static_cast<int>(DType::kQ8Signed);

// NumPy's descriptor of each, in its one native form. That of bfloat16 belongs to a package that need not be installed:
// it is null until an array brings it.
PyObject** descriptors() {
  static PyObject** const all = [] {
    static PyObject* of[kDTypeCount] = {};
    for (int i = 0; i < kDTypeCount; ++i) {
      if (static_cast<DType>(i) != DType::kBFloat16) of[i] = py::dtype(std::string(kDTypes[i].name)).release().ptr();
    }
    return of;
  }();
  return all;
}

std::string supported() {
  std::string names;
  for (int i = 0; i < kArrayTypes; ++i) names += (i == 0 ? "" : ", ") + std::string(kDTypes[i].name);
  return names;
}

// Asked of the type's bases by name: importing numpy.ma would run Python here (see Stepper::step).
bool is_masked(py::handle object) {
  PyTypeObject* const type = Py_TYPE(object.ptr());
  if (type == py::detail::npy_api::get().PyArray_Type_) return false;
  const py::handle bases = type->tp_mro;
  for (py::ssize_t i = 0; i < PyTuple_GET_SIZE(bases.ptr()); ++i) {
    const auto* base = reinterpret_cast<PyTypeObject*>(PyTuple_GET_ITEM(bases.ptr(), i));
    if (std::strcmp(base->tp_name, "MaskedArray") == 0) return true;
  }
  return false;
}

const py::detail::PyArray_Proxy& fields_of(PyObject* array) { return *py::detail::array_proxy(array); }

// What nearly every gradient is, in a few loads: an ndarray, of no subclass, with one of NumPy's own descriptors.
bool view_plain(py::handle object, Array& array) {
  static_assert(sizeof(py::ssize_t) == sizeof(std::int64_t), "gradstep needs a 64-bit system");
  static const PyTypeObject* const ndarray = py::detail::npy_api::get().PyArray_Type_;
  static PyObject* const* const known = descriptors();
  if (Py_TYPE(object.ptr()) != ndarray) return false;
  const auto& fields = fields_of(object.ptr());
  for (int i = 0; i < kArrayTypes; ++i) {
    if (fields.descr != known[i]) continue;
    array = {reinterpret_cast<std::byte*>(fields.data), static_cast<DType>(i), fields.nd,
             reinterpret_cast<const std::int64_t*>(fields.dimensions),
             reinterpret_cast<const std::int64_t*>(fields.strides)};
    return true;
  }
  return false;
}

// The storage type that a descriptor in native byte order stands for; kDTypeCount: none.
int storage_of(PyObject* descriptor) {
  const auto* const dtype = py::detail::array_descriptor_proxy(descriptor);
  for (int i = 0; i < kDTypeCount; ++i) {
    const auto* const known = py::detail::array_descriptor_proxy(descriptors()[i]);
    if (known != nullptr && known->type_num == dtype->type_num) return i;
  }
  const auto* const type = reinterpret_cast<const PyTypeObject*>(dtype->typeobj);
  if (std::strcmp(type->tp_name, "ml_dtypes.bfloat16") != 0) return kDTypeCount;
  Py_INCREF(descriptor);
  descriptors()[static_cast<int>(DType::kBFloat16)] = descriptor;
  return static_cast<int>(DType::kBFloat16);
}

// A NumPy array as the core sees it. Its name, made up only for an error, is `kind` and then `name`. Codes are known
// for what they are only where they may stand.
Array view(py::handle object, const std::string& kind, const std::string& name, bool codes = false) {
  Array array;
  if (view_plain(object, array)) return array;
  if (!py::isinstance<py::array>(object)) {
    throw WrongType(kind + name + " must be a NumPy array, not " + Py_TYPE(object.ptr())->tp_name);
  }
  if (is_masked(object)) {
    throw WrongType(kind + name + " is a masked array, and a step knows no mask; give its data");
  }
  const auto& fields = fields_of(object.ptr());
  array = {reinterpret_cast<std::byte*>(fields.data),
           {},
           fields.nd,
           reinterpret_cast<const std::int64_t*>(fields.dimensions),
           reinterpret_cast<const std::int64_t*>(fields.strides)};

  const auto* dtype = py::detail::array_descriptor_proxy(fields.descr);
  const std::uint16_t one = 1;
  const bool little = *reinterpret_cast<const unsigned char*>(&one) == 1;
  const bool swapped = dtype->byteorder == (little ? '>' : '<');
  const int storage = swapped ? kDTypeCount : storage_of(fields.descr);
  if (storage < (codes ? kDTypeCount : kArrayTypes)) {
    array.dtype = static_cast<DType>(storage);
    return array;
  }
  throw WrongType(kind + name + " has dtype " + std::string(py::str(py::handle(fields.descr))) +
                  (swapped ? ", which is byte-swapped" : "") + "; supported are " + supported() +
                  " in native byte order");
}

Array writable_view(py::handle object, const std::string& kind, const std::string& name, bool codes = false) {
  const Array array = view(object, kind, name, codes);
  if (!py::detail::check_flags(object.ptr(), py::detail::npy_api::NPY_ARRAY_WRITEABLE_)) {
    throw std::invalid_argument(kind + name + " is read-only, and a step writes it in place");
  }
  return array;
}

// Options in the catalog's order; the names must be exactly the rule's.
std::vector<double> in_order(int rule, const Options& options) {
  const step::RuleInfo& info = step::catalog()[static_cast<std::size_t>(rule)];
  std::vector<double> values;
  for (const std::string& name : info.options) {
    const auto found = options.find(name);
    if (found == options.end()) throw std::invalid_argument(info.name + " needs the option " + name);
    values.push_back(found->second);
  }
  for (const auto& [name, value] : options) {
    if (std::find(info.options.begin(), info.options.end(), name) == info.options.end()) {
      throw std::invalid_argument(info.name + " has no option " + name);
    }
  }
  return values;
}

std::vector<std::string> kept_states(const std::string& rule, const Options& options) {
  const int number = step::rule_number(rule);
  const auto& states = step::catalog()[static_cast<std::size_t>(number)].states;
  const rules::Key key = step::key_of(number, in_order(number, options), {});
  std::vector<std::string> kept;
  for (std::size_t s = 0; s < states.size(); ++s) {
    if (step::keeps(key, s)) kept.emplace_back(states[s].name);
  }
  return kept;
}

// Runs f without the interpreter's lock. If the interpreter has ended meanwhile, taking the lock back unwinds this
// (daemon) thread, which C++ frames need not survive; it sleeps until the process is gone, as from Python 3.14 on.
template <class F>
void without_gil(F f) {
  PyThreadState* const state = PyEval_SaveThread();
  f();
  try {
    PyEval_RestoreThread(state);
  } catch (...) {
    for (;;) pause();
  }
}

// An array that steps will write.
Array target_view(py::handle object, const std::string& kind, const std::string& name, bool codes = false) {
  const Array array = writable_view(object, kind, name, codes);
  if (step::overlaps_itself(array)) {
    throw std::invalid_argument(kind + name + " has strides that let its own elements overlap");
  }
  return array;
}

// Whether an array is aligned, and without gaps in the order of its indices.
bool is_packed(py::handle array) {
  constexpr int kBoth = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  return (fields_of(array.ptr()).flags & kBoth) == kBoth;
}

// What benchmarks measure a step by: see step::run_additions.
void run_additions(const std::vector<py::object>& streams) {
  std::vector<Array> arrays;
  for (std::size_t i = 0; i < streams.size(); ++i) {
    const std::string name = "[" + std::to_string(i) + "]";
    arrays.push_back(i == 1 ? view(streams[i], "streams", name) : target_view(streams[i], "streams", name));
    const Array &first = arrays[0], &last = arrays.back();
    const bool alike = last.rank == 1 && last.shape[0] == first.shape[0] && last.dtype == first.dtype;
    if (!alike || !is_native(last.dtype) || !is_packed(streams[i])) {
      throw std::invalid_argument(
          "streams must be aligned arrays of one axis, of one size and dtype, float32 or float64, without gaps");
    }
  }
  if (arrays.size() < 2 || arrays.size() > kCopy) {
    throw std::invalid_argument("streams must be a parameter, a gradient and up to " +
                                std::to_string(rules::kMaxStates) + " states");
  }
  without_gil([&] { step::run_additions(arrays, arrays[0].shape[0]); });
}

// What is stored in another type, the scales of its blocks where it has some, and its values.
struct Coded {
  Array stored, values;
  float* scales = nullptr;

  // To encode writes the first two, to decode the values.
  Coded(const py::object& codes, const std::optional<py::object>& blocks, const py::object& floats, bool encodes)
      : stored(encodes ? writable_view(codes, "codes", "", true) : view(codes, "codes", "", true)),
        values(encodes ? view(floats, "values", "") : writable_view(floats, "values", "")) {
    const std::int64_t size = stored.rank == 1 ? stored.shape[0] : -1;
    const auto packed_floats = [](py::handle array, const Array& of, std::int64_t length) {
      return of.dtype == DType::kFloat32 && of.rank == 1 && of.shape[0] == length && is_packed(array);
    };
    bool fits = !is_native(stored.dtype) && has_scales(stored.dtype) == blocks.has_value() && size >= 0 &&
                is_packed(codes) && packed_floats(floats, values, size);
    if (fits && blocks) {
      const Array of = encodes ? writable_view(*blocks, "scales", "") : view(*blocks, "scales", "");
      fits = packed_floats(*blocks, of, blocks_of(size));
      scales = reinterpret_cast<float*>(of.data);
    }
    if (!fits) {
      throw WrongType("float16, bfloat16, or int8 or uint8 codes with a float32 scale for each " +
                      std::to_string(kBlock) + ", go with as many float32 values, all of one axis and without gaps");
    }
  }

  float* floats() const { return reinterpret_cast<float*>(values.data); }
};

void decode(const py::object& stored, const std::optional<py::object>& scales, const py::object& values) {
  const Coded all(stored, scales, values, false);
  cpu::conversions()[all.stored.dtype].decode(all.stored.data, all.scales, all.stored.shape[0], all.floats());
}

// To nearest.
void encode(const py::object& values, const py::object& stored, const std::optional<py::object>& scales) {
  const Coded all(stored, scales, values, true);
  cpu::conversions()[all.stored.dtype].encode(all.floats(), all.stored.shape[0], nullptr, 0, all.stored.data,
                                              all.scales);
}

// Not for several threads at once: the Python class sees to that.
class Stepper {
 public:
  Stepper(const std::string& rule, const std::string& params, const std::string& grads)
      : rule_(step::rule_number(rule)),
        params_(params),
        grads_(grads),
        stepper_(rule_, step::on_cpu(), params, grads) {}

  int add_group(const Options& options) { return stepper_.add_group(in_order(rule_, options)); }

  void set_options(int group, const Options& options) { stepper_.set_options(group, in_order(rule_, options)); }

  void check_options(int group, const Options& options) const {
    stepper_.check_options(group, in_order(rule_, options));
  }
  void set_lr(int group, double lr) { stepper_.set_lr(group, lr); }

  // One entry of `states` for each of the rule's states: an array, codes with their scales, or None where it is not
  // kept. With a master, steps update that, and the parameter becomes its rounding.
  void add_tensor(int group, const std::string& name, const py::object& param,
                  const std::vector<std::optional<py::object>>& states, const std::optional<py::object>& master) {
    const auto& about = step::catalog()[static_cast<std::size_t>(rule_)].states;
    std::vector<Watched> added{own(param, params_, name, Role::kParameter)};
    const Array of = added[0].array.view();
    if (states.size() > about.size()) throw std::invalid_argument("there are more states than the rule has");
    std::vector<Array> arrays;
    for (std::size_t s = 0; s < states.size(); ++s) {
      arrays.push_back(states[s] ? own_state(*states[s], about[s], name, of, added) : Array{});
    }
    Array kept{};
    if (master) {
      kept = own_like(*master, "state master of ", name, of, added);
      if (kept.dtype != DType::kFloat32 || is_native(of.dtype)) {
        throw WrongType(added.back().name + " must be float32, and its parameter of 16 bits");
      }
    }
    stepper_.add_tensor(group, name, of, arrays, kept);
    for (Watched& owned : added) owned_.push_back(std::move(owned));
    first_of_.push_back(owned_.size());
  }

  // Of the arrays that steps write, those whose extents meet; no two may share an element.
  std::vector<Suspect> suspects() const {
    std::vector<std::pair<step::Extent, const Watched*>> order;
    for (const Watched& owned : owned_) order.emplace_back(step::extent(owned.array.view()), &owned);
    std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first.begin < b.first.begin; });
    std::vector<Suspect> found;
    for (std::size_t i = 0; i < order.size(); ++i) {
      for (std::size_t j = i + 1; j < order.size() && order[j].first.begin < order[i].first.end; ++j) {
        if (step::surely_apart(order[i].second->array.view(), order[j].second->array.view())) continue;
        const auto [first, second] = std::minmax(order[i].second, order[j].second);
        const bool same = first->array.data == second->array.data && first->array.dtype == second->array.dtype &&
                          first->array.shape == second->array.shape && first->array.strides == second->array.strides;
        found.emplace_back(first->object, second->object,
                           second->name + (same ? " is the same array as " : " overlaps ") + first->name);
      }
    }
    return found;
  }

  // Takes a step and returns None; without gradients, with those that were bound. Or, where gradients lie among the
  // bytes of arrays that steps write, takes none and returns the gradients and the pairs to look at; step(those
  // gradients, true) then takes it. NumPy has the exact test, but no Python may run here: when the interpreter ends, a
  // thread that waits for its lock is unwound, and these frames would drop references without it.
  std::optional<std::pair<py::tuple, std::vector<Suspect>>> step(const py::object& grads, bool looked_at) {
    py::tuple held;
    if (grads.is_none()) {
      if (!is_bound_) throw WrongType(grads_ + " must be given, for none were bound");
      for (const auto& [tensor, grad] : bound_) {
        check_unmoved(tensor);
        grad.check_unmoved();
      }
    } else {
      held = hold(grads);
      std::vector<Suspect> suspects = set_gradients(held, looked_at);
      if (!suspects.empty()) return std::pair{std::move(held), std::move(suspects)};
    }
    without_gil([this] { stepper_.run(); });
    ++step_count_;
    return std::nullopt;
  }

  // From now on every step is with these gradients; returns what step() would.
  std::vector<Suspect> bind(const py::object& grads) {
    const py::tuple held = hold(grads);
    std::vector<Suspect> suspects = set_gradients(held, false);
    is_bound_ = true;
    for (std::size_t i = 0; i < held.size(); ++i) {
      const py::object grad = held[i];
      const std::string name = grads_ + stepper_.name(i);
      if (!grad.is_none()) bound_.emplace_back(i, watch(grad, view(grad, name, ""), name, Role::kGradient));
    }
    return suspects;
  }

  std::int64_t step_count() const { return step_count_; }
  void set_step_count(std::int64_t count) { step_count_ = count; }

  // Each tensor's own step number and, of use to Nadam alone, its product of momenta.
  std::vector<std::pair<std::int64_t, double>> clocks() {
    std::vector<std::pair<std::int64_t, double>> all;
    for (std::size_t i = 0; i < stepper_.size(); ++i) {
      all.emplace_back(stepper_.clock(i).t, stepper_.clock(i).mu_product);
    }
    return all;
  }

  void set_clocks(const std::vector<std::pair<std::int64_t, double>>& all) {
    if (all.size() != stepper_.size()) throw std::invalid_argument("one clock a tensor is needed");
    for (std::size_t i = 0; i < all.size(); ++i) stepper_.clock(i) = {all[i].first, all[i].second};
  }

 private:
  enum class Role { kParameter, kGradient, kState };

  // An array as it was when the optimizer was made; every step looks whether it still is.
  struct Watched {
    py::object object;
    py::weakref unresizable;  // NumPy resizes no array in place that has one
    py::object descriptor;
    const py::ssize_t *shape_at, *strides_at;
    Role role;
    step::KeptArray array;
    std::string name;

    void check_unmoved() const {
      const auto& now = fields_of(object.ptr());
      const int rank = static_cast<int>(array.shape.size());
      bool same = reinterpret_cast<const std::byte*>(now.data) == array.data && now.nd == rank;
      if (role == Role::kState) {
        // Its header tells, as far as a user of `opt.state` goes. NumPy keeps shapes beside the data, in cache lines
        // that workers write: to look at those of all states would cost more than the rest of a small tensor's step.
        same = same && now.dimensions == shape_at && now.strides == strides_at;
      } else {
        same = same && step::same(array.shape.data(), now.dimensions, rank) &&
               step::same(array.strides.data(), now.strides, rank);
      }
      if (!same) throw std::invalid_argument(name + " was moved or reshaped after the optimizer was made");
      // Another descriptor, or a flag withdrawn: look closer.
      const bool written = role != Role::kGradient;
      const bool locked = written && (now.flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_) == 0;
      if (now.descr == descriptor.ptr() && !locked) return;
      const bool codes = has_scales(array.dtype);
      if ((written ? writable_view(object, name, "", codes) : view(object, name, "")).dtype != array.dtype) {
        throw WrongType(name + " was given another dtype after the optimizer was made");
      }
    }
  };

  static Watched watch(const py::object& object, const Array& array, const std::string& name, Role role) {
    const auto& now = fields_of(object.ptr());
    const auto descriptor = py::reinterpret_borrow<py::object>(now.descr);
    return {object, py::weakref(object), descriptor, now.dimensions, now.strides, role, step::KeptArray(array), name};
  }

  static Watched own(const py::object& object, const std::string& kind, const std::string& name, Role role,
                     bool codes = false) {
    return watch(object, target_view(object, kind, name, codes), kind + name, role);
  }

  // A state that has a value for each element of its parameter; it is added to the watched.
  Array own_like(const py::object& state, const std::string& kind, const std::string& name, const Array& param,
                 std::vector<Watched>& added, bool codes = false) const {
    added.push_back(own(state, kind + params_, name, Role::kState, codes));
    const Array array = added.back().array.view();
    if (array.rank != param.rank || !step::same(array.shape, param.shape, param.rank)) {
      throw std::invalid_argument(added.back().name + " must have its parameter's shape");
    }
    return array;
  }

  Array own_state(const py::object& given, const rules::State& about, const std::string& name, const Array& param,
                  std::vector<Watched>& added) const {
    const std::string kind = "state " + std::string(about.name) + " of ";
    const bool single = compute_of(param.dtype) == Compute::kFloat;
    if (!py::isinstance<py::tuple>(given)) {
      const Array array = own_like(given, kind, name, param, added, true);
      const bool native = array.dtype == native_of(compute_of(param.dtype));
      if (!native && !(single && array.dtype == DType::kBFloat16)) {
        throw WrongType(
            added.back().name + " is " + dtype_name(array.dtype) + ", but must be " +
            (single ? "float32 or bfloat16, or a pair of codes and their scales" : "float64, as its parameter is"));
      }
      return array;
    }
    const auto pair = given.cast<py::tuple>();
    if (pair.size() != 2) throw WrongType(kind + params_ + name + " must be an array, or codes with their scales");
    Array codes = own_like(pair[0], kind, name, param, added, true);
    const DType wanted = about.not_negative ? DType::kQ8Unsigned : DType::kQ8Signed;
    if (codes.dtype != wanted || !single || !is_packed(pair[0])) {
      throw WrongType(added.back().name + " must be " + dtype_name(wanted) +
                      " codes without gaps in C order, of a float32, float16 or bfloat16 parameter");
    }
    const py::ssize_t blocks = blocks_of(pair[0].cast<py::array>().size());
    added.push_back(own(pair[1], "the scales of " + kind + params_, name, Role::kState));
    const Array scales = added.back().array.view();
    if (scales.dtype != DType::kFloat32 || scales.rank != 1 || scales.shape[0] != blocks || !is_packed(pair[1])) {
      throw WrongType(added.back().name + " must be float32, of one axis, one for each " + std::to_string(kBlock) +
                      " elements, without gaps");
    }
    codes.scales = reinterpret_cast<float*>(scales.data);
    return codes;
  }

  // Of a tensor's parameter and states.
  void check_unmoved(std::size_t tensor) const {
    for (std::size_t k = first_of_[tensor]; k < first_of_[tensor + 1]; ++k) owned_[k].check_unmoved();
  }

  // A copy: another thread may change the caller's list, or drop its arrays while the kernel runs.
  py::tuple hold(const py::object& grads) const {
    auto held = py::reinterpret_steal<py::tuple>(PySequence_Tuple(grads.ptr()));
    if (!held) throw py::error_already_set();
    if (held.size() != stepper_.size()) {
      throw std::invalid_argument("got " + std::to_string(held.size()) + " gradients for " +
                                  std::to_string(stepper_.size()) + " parameters");
    }
    return held;
  }

  std::vector<Suspect> set_gradients(const py::tuple& held, bool looked_at) {
    std::vector<Suspect> suspects;
    stepper_.begin();
    for (std::size_t i = 0; i < held.size(); ++i) {
      const py::handle grad = PyTuple_GET_ITEM(held.ptr(), static_cast<py::ssize_t>(i));
      if (grad.is_none()) continue;
      const Array array = view(grad, grads_, stepper_.name(i));
      check_unmoved(i);
      const bool may_overlap = stepper_.set_gradient(i, array);
      if (may_overlap && !looked_at) add_suspects(grad, array, stepper_.name(i), suspects);
    }
    return suspects;
  }

  void add_suspects(py::handle grad, const Array& array, const std::string& name,
                    std::vector<Suspect>& suspects) const {
    for (const Watched& owned : owned_) {
      if (step::surely_apart(array, owned.array.view())) continue;
      suspects.emplace_back(py::reinterpret_borrow<py::object>(grad), owned.object,
                            grads_ + name + " overlaps " + owned.name + ", which the step writes");
    }
  }

  int rule_;
  std::string params_, grads_;
  step::Stepper stepper_;
  std::vector<Watched> owned_;            // each tensor's parameter, then its states
  std::vector<std::size_t> first_of_{0};  // where in owned_ each tensor begins, and the last ends
  bool is_bound_ = false;
  std::vector<std::pair<std::size_t, Watched>> bound_;  // the gradients that bind() was given, with their tensors
  std::int64_t step_count_ = 0;
};

}  // namespace

void register_stepper(py::module_& m) {
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const WrongType& wrong) {
      PyErr_SetString(PyExc_TypeError, wrong.what());
    }
  });

  m.def("rules", [] {
    py::list all;
    for (const step::RuleInfo& info : step::catalog()) {
      py::dict entry;
      entry["name"] = info.name;
      entry["options"] = info.options;
      py::list states, not_negative;
      for (const rules::State& state : info.states) {
        states.append(state.name);
        if (state.not_negative) not_negative.append(state.name);
      }
      entry["states"] = states;
      entry["not_negative"] = not_negative;
      all.append(entry);
    }
    return all;
  });
  m.def(
      "check_param", [](const py::object& param, const std::string& name) { target_view(param, "params", name); },
      py::arg("param"), py::arg("name"));
  m.attr("BLOCK") = kBlock;
  m.def("decode", &decode, py::arg("stored"), py::arg("scales"), py::arg("values"));
  m.def("encode", &encode, py::arg("values"), py::arg("stored"), py::arg("scales"));
  m.def("run_additions", &run_additions, py::arg("streams"));
  m.def("kept_states", &kept_states, py::arg("rule"), py::arg("options"));

  py::class_<Stepper>(m, "Stepper")
      .def(py::init<const std::string&, const std::string&, const std::string&>(), py::arg("rule"),
           py::arg("params") = "params", py::arg("grads") = "grads")
      .def("add_group", &Stepper::add_group, py::arg("options"))
      .def("check_options", &Stepper::check_options, py::arg("group"), py::arg("options"))
      .def("set_options", &Stepper::set_options, py::arg("group"), py::arg("options"))
      .def("set_lr", &Stepper::set_lr, py::arg("group"), py::arg("lr"))
      .def("bind", &Stepper::bind, py::arg("grads"))
      .def("add_tensor", &Stepper::add_tensor, py::arg("group"), py::arg("name"), py::arg("param"), py::arg("states"),
           py::arg("master") = py::none())
      .def("suspects", &Stepper::suspects)
      .def("step", &Stepper::step, py::arg("grads"), py::arg("looked_at") = false)
      .def_property("step_count", &Stepper::step_count, &Stepper::set_step_count)
      .def_property("clocks", &Stepper::clocks, &Stepper::set_clocks);
}

}  // namespace gradstep::bind
