#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bind/arrays.h"
#include "bind/gc.h"
#include "bind/options.h"
#include "step/catalog.h"
#include "step/norm.h"
#include "step/stepper.h"

namespace gradstep::bind {

namespace py = pybind11;

// Runs f without the interpreter's lock. If the interpreter has ended meanwhile, taking the lock back unwinds this
// (daemon) thread, which C++ frames need not survive; it sleeps until the process is gone, as from Python 3.14 on.
template <class F>
void without_gil(F f) {
  PyThreadState* const state = PyEval_SaveThread();
  std::exception_ptr error;
  try {
    f();
  } catch (...) {
    error = std::current_exception();
  }
  try {
    PyEval_RestoreThread(state);
  } catch (...) {
    for (;;) pause();
  }
  if (error) std::rethrow_exception(error);
}

// An array that steps will write.
template <class Arrays>
Array target_view(Arrays& arrays, py::handle object, const std::string& kind, const std::string& name,
                  bool codes = false) {
  const Array array = arrays.writable_view(object, kind, name, codes);
  if (step::overlaps_itself(array)) {
    throw std::invalid_argument(kind + name + " has strides that let its own elements overlap");
  }
  return array;
}

// The core's stepper for the arrays of one kind. Not for several threads at once: the Python class sees to that.
template <class Arrays>
class Stepper {
 public:
  using Watched = typename Arrays::Watched;

  Stepper(const std::string& rule, const std::string& params, const std::string& grads)
      : rule_(step::rule_number(rule)),
        params_(params),
        grads_(grads),
        stepper_(rule_, arrays_.backend(), params, grads) {}

  // A device waits for steps that still read its memory, and they may wait for whoever waits for the lock.
  ~Stepper() {
    if constexpr (Arrays::kOnDevice) without_gil([this] { stepper_.release(); });
  }
  Stepper(const Stepper&) = delete;
  Stepper& operator=(const Stepper&) = delete;

  // For the garbage collector. The vectors change only while the GIL is held, and steps without it leave them alone.
  int traverse(visitproc visit, void* arg) const {
    for (const Watched& owned : owned_) {
      if (const int stop = owned.traverse(visit, arg)) return stop;
    }
    for (const auto& [tensor, grad] : bound_) {
      if (const int stop = grad.traverse(visit, arg)) return stop;
    }
    return arrays_.traverse(visit, arg);
  }

  // For the garbage collector: afterwards this is a new stepper, without groups and tensors.
  void clear() {
    Arrays arrays;
    step::Stepper stepper(rule_, arrays.backend(), params_, grads_);
    const std::vector<Watched> owned = std::exchange(owned_, {});
    const auto bound = std::exchange(bound_, {});
    std::swap(arrays_, arrays);
    std::swap(stepper_, stepper);
    first_of_.resize(1);
    is_bound_ = false;
    if constexpr (Arrays::kOnDevice) without_gil([&] { stepper.release(); });
  }

  Arrays& arrays() { return arrays_; }

  int add_group(const Options& options) { return stepper_.add_group(in_order(rule_, options)); }

  void set_options(int group, const Options& options) { stepper_.set_options(group, in_order(rule_, options)); }

  void check_options(int group, const Options& options) const {
    stepper_.check_options(group, in_order(rule_, options));
  }
  void set_lr(int group, double lr) { stepper_.set_lr(group, lr); }

  // None: no more of it.
  void set_clip_norm(const std::optional<double>& limit) { stepper_.set_clip_norm(limit); }
  void set_skip_nonfinite(bool on) { stepper_.set_skip_nonfinite(on); }

  std::optional<double> grad_norm() {
    std::optional<double> norm;
    without_gil([&] { norm = stepper_.grad_norm(); });
    return norm;
  }

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
      if (kept.dtype != DType::kFloat32 || info(of.dtype).kind != CodecKind::kNarrow) {
        throw WrongType(added.back().name + " must be float32, and its parameter of 16 bits");
      }
    }
    stepper_.add_tensor(group, name, of, arrays, kept);
    for (Watched& owned : added) owned_.push_back(std::move(owned));
    first_of_.push_back(owned_.size());
  }

  // Of the arrays that steps write, those whose extents meet; no two may share an element.
  std::vector<PossibleOverlap> possible_overlaps() const {
    std::vector<std::pair<step::Extent, const Watched*>> order;
    for (const Watched& owned : owned_) order.emplace_back(step::extent(owned.array.view()), &owned);
    std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first.begin < b.first.begin; });
    std::vector<PossibleOverlap> found;
    for (std::size_t i = 0; i < order.size(); ++i) {
      for (std::size_t j = i + 1; j < order.size() && order[j].first.begin < order[i].first.end; ++j) {
        if (step::surely_apart(order[i].second->array.view(), order[j].second->array.view())) continue;
        const auto [first, second] = std::minmax(order[i].second, order[j].second);
        const bool same = first->array.data == second->array.data && first->array.dtype == second->array.dtype &&
                          first->array.shape == second->array.shape && first->array.strides == second->array.strides;
        found.emplace_back(arrays_.to_compare(first->object, first->array.view()),
                           arrays_.to_compare(second->object, second->array.view()),
                           second->name + (same ? " is the same array as " : " overlaps ") + first->name);
      }
    }
    return found;
  }

  // Takes a step and returns None; without gradients, with those that were bound. Or, where gradients lie among the
  // bytes of arrays that steps write, prepares it and returns the gradients and their possible overlaps; run() with the
  // gradients then takes the step. NumPy has the exact test, but no Python may run here: when the interpreter ends, a
  // thread that waits for its lock is unwound, and these frames would drop references without it.
  std::optional<std::pair<py::tuple, std::vector<PossibleOverlap>>> step(const py::object& grads) {
    spot_check();
    py::tuple held;
    if (grads.is_none()) {
      if (!is_bound_) throw WrongType(grads_ + " must be given, for none were bound");
      for (const auto& [tensor, grad] : bound_) {
        check_unmoved(tensor);
        grad.check_unmoved();
      }
    } else {
      held = hold(grads);
      std::vector<PossibleOverlap> possible_overlaps = set_gradients(held);
      if (!possible_overlaps.empty()) return std::pair{std::move(held), std::move(possible_overlaps)};
    }
    run(held);
    return std::nullopt;
  }

  // Takes the step that step() prepared. Its gradients are an argument so that they live until it is done.
  void run(const py::tuple&) {
    without_gil([this] { stepper_.run(); });
  }

  // From now on every step is with these gradients; returns what step() would.
  std::vector<PossibleOverlap> bind(const py::object& grads) {
    const py::tuple held = hold(grads);
    std::vector<PossibleOverlap> possible_overlaps = set_gradients(held);
    is_bound_ = true;
    for (std::size_t i = 0; i < held.size(); ++i) {
      const py::object grad = held[i];
      const std::string name = grads_ + stepper_.name(i);
      if (!grad.is_none()) bound_.emplace_back(i, Watched(grad, arrays_.view(grad, name, ""), name, Role::kGradient));
    }
    return possible_overlaps;
  }

  std::int64_t step_count() {
    std::int64_t taken = 0;
    may_wait([&] { taken = stepper_.step_count(); });
    return taken;
  }

  // Each tensor's own step number, and the rule's scalars.
  using Clocks = std::vector<std::pair<std::int64_t, std::vector<double>>>;
  Clocks clocks() {
    Clocks all;
    step::StepState state;
    may_wait([&] { state = stepper_.state(); });
    for (const rules::Clock& clock : state.clocks) {
      all.emplace_back(clock.t, std::vector<double>(clock.scalars, clock.scalars + scalars()));
    }
    return all;
  }

  void set_times(std::int64_t step_count, const Clocks& all) {
    step::StepState state{step_count, {}};
    for (const auto& [t, values] : all) {
      if (values.size() != scalars()) throw std::invalid_argument("each of the rule's scalars is needed");
      rules::Clock& clock = state.clocks.emplace_back();
      clock.t = t;
      std::copy(values.begin(), values.end(), clock.scalars);
    }
    may_wait([&] { stepper_.set_state(state); });
  }

 private:
  std::size_t scalars() const { return step::catalog()[static_cast<std::size_t>(rule_)].scalars.size(); }

  // An array that steps will write.
  Watched own(const py::object& object, const std::string& kind, const std::string& name, Role role,
              bool codes = false) {
    return {object, target_view(arrays_, object, kind, name, codes), kind + name, role};
  }

  // A state that has a value for each element of its parameter; it is added to the watched.
  Array own_like(const py::object& state, const std::string& kind, const std::string& name, const Array& param,
                 std::vector<Watched>& added, bool codes = false) {
    added.push_back(own(state, kind + params_, name, Role::kState, codes));
    const Array array = added.back().array.view();
    if (array.rank != param.rank || !step::same(array.shape, param.shape, param.rank)) {
      throw std::invalid_argument(added.back().name + " must have its parameter's shape");
    }
    return array;
  }

  Array own_state(const py::object& given, const rules::State& about, const std::string& name, const Array& param,
                  std::vector<Watched>& added) {
    const std::string kind = "state " + std::string(about.name) + " of ";
    const bool single = compute_of(param.dtype) == Compute::kFloat;
    if (!py::isinstance<py::tuple>(given)) {
      const Array array = own_like(given, kind, name, param, added, true);
      const unsigned role = about.non_negative ? kAsNonNegativeState : kAsSignedState;
      const bool fits = compute_of(array.dtype) == compute_of(param.dtype) && !has_scales(array.dtype);
      if (!fits || !may_be(array.dtype, role)) {
        throw WrongType(
            added.back().name + " is " + dtype_name(array.dtype) + ", but must be " +
            (single ? "float32 or bfloat16, or a pair of codes and their scales" : "float64, as its parameter is"));
      }
      return array;
    }
    const auto pair = given.cast<py::tuple>();
    if (pair.size() != 2) throw WrongType(kind + params_ + name + " must be an array, or codes with their scales");
    Array codes = own_like(pair[0], kind, name, param, added, true);
    const DType wanted = about.non_negative ? DType::kQ8Unsigned : DType::kQ8Signed;
    if (codes.dtype != wanted || !single || !step::is_packed(codes)) {
      throw WrongType(added.back().name + " must be " + dtype_name(wanted) +
                      " codes without gaps in C order, of a float32, float16 or bfloat16 parameter");
    }
    const std::int64_t blocks = blocks_of(step::size_of(codes));
    added.push_back(own(pair[1], "the scales of " + kind + params_, name, Role::kState));
    const Array scales = added.back().array.view();
    if (scales.dtype != DType::kFloat32 || scales.rank != 1 || scales.shape[0] != blocks || !step::is_packed(scales)) {
      throw WrongType(added.back().name + " must be float32, of one axis, one for each " + std::to_string(kBlock) +
                      " elements, without gaps");
    }
    codes.scales = reinterpret_cast<float*>(scales.data);
    return codes;
  }

  // Runs f, which may wait for a device.
  template <class F>
  void may_wait(const F& f) {
    if constexpr (Arrays::kOnDevice) {
      without_gil(f);
    } else {
      f();
    }
  }

  // At a few of the arrays, in turn, where to look at all would take too long.
  void spot_check() {
    if constexpr (Arrays::kSpotChecks > 0) {
      const std::size_t count = owned_.size() + bound_.size();
      for (std::size_t i = 0; i < std::min<std::size_t>(Arrays::kSpotChecks, count); ++i) {
        checked_ = (checked_ + 1) % count;
        const bool owned = checked_ < owned_.size();
        arrays_.spot_check(owned ? owned_[checked_] : bound_[checked_ - owned_.size()].second);
      }
    }
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

  std::vector<PossibleOverlap> set_gradients(const py::tuple& held) {
    std::vector<PossibleOverlap> possible_overlaps;
    stepper_.begin();
    for (std::size_t i = 0; i < held.size(); ++i) {
      const py::handle grad = PyTuple_GET_ITEM(held.ptr(), static_cast<py::ssize_t>(i));
      if (grad.is_none()) continue;
      const Array array = arrays_.view(grad, grads_, stepper_.name(i));
      check_unmoved(i);
      if (stepper_.set_gradient(i, array)) add_possible_overlaps(grad, array, stepper_.name(i), possible_overlaps);
    }
    return possible_overlaps;
  }

  void add_possible_overlaps(py::handle grad, const Array& array, const std::string& name,
                             std::vector<PossibleOverlap>& possible_overlaps) const {
    for (const Watched& owned : owned_) {
      if (step::surely_apart(array, owned.array.view())) continue;
      possible_overlaps.emplace_back(arrays_.to_compare(py::reinterpret_borrow<py::object>(grad), array),
                                     arrays_.to_compare(owned.object, owned.array.view()),
                                     grads_ + name + " overlaps " + owned.name + ", which the step writes");
    }
  }

  int rule_;
  std::string params_, grads_;
  Arrays arrays_;
  step::Stepper stepper_;
  std::vector<Watched> owned_;            // each tensor's parameter, then its states
  std::vector<std::size_t> first_of_{0};  // where in owned_ each tensor begins, and the last ends
  std::size_t checked_ = 0;               // the last array that was glanced at
  bool is_bound_ = false;
  std::vector<std::pair<std::size_t, Watched>> bound_;  // the gradients that bind() was given, with their tensors
};

// The norm of all elements of some arrays together, None among them left out; `names` follow "arrays" in messages.
// seen() is called once it is known where they are.
template <class Arrays, class Seen>
double global_norm(Arrays& arrays, const py::tuple& objects, const std::vector<std::string>& names, const Seen& seen) {
  auto backend = arrays.backend();
  std::vector<step::KeptArray> kept;
  std::vector<Array> views;
  for (std::size_t i = 0; i < objects.size(); ++i) {
    const py::handle object = PyTuple_GET_ITEM(objects.ptr(), static_cast<py::ssize_t>(i));
    kept.emplace_back(object.is_none() ? step::KeptArray{}
                                       : step::KeptArray(arrays.view(object, "arrays", names.at(i))));
  }
  for (const step::KeptArray& array : kept) views.push_back(array.view());
  seen();
  double norm = 0;
  without_gil([&] {
    norm = step::global_norm(*backend, views);
    backend.reset();
  });
  return norm;
}

// Adds the class to a module, and the look that it takes at a parameter.
template <class Arrays>
py::class_<Stepper<Arrays>> register_stepper(py::module_& m) {
  using Steps = Stepper<Arrays>;
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const WrongType& wrong) {
      PyErr_SetString(PyExc_TypeError, wrong.what());
    }
  });

  m.def(
      "check_param",
      [](const py::object& param, const std::string& name) {
        Arrays arrays;
        const auto backend = arrays.backend();
        target_view(arrays, param, "params", name);
      },
      py::arg("param"), py::arg("name"));

  py::class_<Steps> stepper(m, "Stepper", py::is_final(), collect_garbage<Steps>());
  stepper
      .def(py::init<const std::string&, const std::string&, const std::string&>(), py::arg("rule"),
           py::arg("params") = "params", py::arg("grads") = "grads")
      .def("add_group", &Steps::add_group, py::arg("options"))
      .def("check_options", &Steps::check_options, py::arg("group"), py::arg("options"))
      .def("set_options", &Steps::set_options, py::arg("group"), py::arg("options"))
      .def("set_lr", &Steps::set_lr, py::arg("group"), py::arg("lr"))
      .def("set_clip_norm", &Steps::set_clip_norm, py::arg("limit"))
      .def("set_skip_nonfinite", &Steps::set_skip_nonfinite, py::arg("on"))
      .def_property_readonly("grad_norm", &Steps::grad_norm)
      .def("bind", &Steps::bind, py::arg("grads"))
      .def("add_tensor", &Steps::add_tensor, py::arg("group"), py::arg("name"), py::arg("param"), py::arg("states"),
           py::arg("master") = py::none())
      .def("possible_overlaps", &Steps::possible_overlaps)
      .def("step", &Steps::step, py::arg("grads"))
      .def("run", &Steps::run, py::arg("prepared"))
      .def_property_readonly("step_count", &Steps::step_count)
      .def_property_readonly("clocks", &Steps::clocks)
      .def("set_times", &Steps::set_times, py::arg("step_count"), py::arg("clocks"));
  return stepper;
}

}  // namespace gradstep::bind
