#include "step/stepper.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <optional>

#include "bind/bind.h"

namespace py = pybind11;

namespace gradstep::bind {
namespace {

using step::Array;
using step::WrongType;
using Options = std::map<std::string, double>;

std::string supported() {
  std::string names;
#define GS_NAME(name, Codec) names += (names.empty() ? "" : ", ") + std::string(codecs::Codec::kName);
  GS_CODECS(GS_NAME)
#undef GS_NAME
  return names;
}

// A NumPy array as the core sees it. Its name, made up only for an error, is `kind` and then `name`.
Array view(py::handle object, const char* kind, const std::string& name) {
  static_assert(sizeof(py::ssize_t) == sizeof(std::int64_t), "gradstep needs a 64-bit system");
  if (!py::isinstance<py::array>(object)) {
    throw WrongType(kind + name + " must be a NumPy array, not " + Py_TYPE(object.ptr())->tp_name);
  }
  const bool subclass = Py_TYPE(object.ptr()) != py::detail::npy_api::get().PyArray_Type_;
  if (subclass && py::isinstance(object, py::module_::import("numpy.ma").attr("MaskedArray"))) {
    throw WrongType(kind + name + " is a masked array, and a step knows no mask; give its data");
  }
  const auto* fields = py::detail::array_proxy(object.ptr());
  Array array{reinterpret_cast<std::byte*>(fields->data),
              {},
              fields->nd,
              reinterpret_cast<const std::int64_t*>(fields->dimensions),
              reinterpret_cast<const std::int64_t*>(fields->strides)};

  const auto* dtype = py::detail::array_descriptor_proxy(fields->descr);
  const bool native = dtype->byteorder == '=' || dtype->byteorder == '|';
#define GS_RECOGNIZE(name, Codec)                                                 \
  if (native && dtype->type_num == py::dtype::num_of<codecs::Codec::Storage>()) { \
    array.dtype = DType::name;                                                    \
    return array;                                                                 \
  }
  GS_CODECS(GS_RECOGNIZE)
#undef GS_RECOGNIZE
  throw WrongType(kind + name + " has dtype " + std::string(py::str(py::handle(fields->descr))) +
                  (native ? "" : ", which is byte-swapped") + "; supported are " + supported() +
                  " in native byte order");
}

Array writable_view(py::handle object, const char* kind, const std::string& name) {
  const Array array = view(object, kind, name);
  if (!py::detail::check_flags(object.ptr(), py::detail::npy_api::NPY_ARRAY_WRITEABLE_)) {
    throw std::invalid_argument(kind + name + " is read-only, and a step writes it in place");
  }
  return array;
}

// NumPy's exact test; where it would take too long, the answer is yes. Subclasses could answer for themselves: they are
// not asked.
bool share_memory(py::handle a, py::handle b) {
  const py::module_ numpy = py::module_::import("numpy");
  const py::object ndarray = numpy.attr("ndarray");
  const auto plain = [&](py::handle array) { return ndarray.attr("view")(array, ndarray); };
  try {
    constexpr int kMaxWork = 100'000;
    return numpy.attr("shares_memory")(plain(a), plain(b), kMaxWork).cast<bool>();
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_RuntimeError)) throw;  // TooHardError is one
    return true;
  }
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
    if (step::keeps(key, s)) kept.push_back(states[s]);
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
Array target_view(py::handle object, const char* kind, const std::string& name) {
  const Array array = writable_view(object, kind, name);
  if (step::overlaps_itself(array)) {
    throw std::invalid_argument(kind + name + " has strides that let its own elements overlap");
  }
  return array;
}

// Not for several threads at once: the Python class sees to that.
class Stepper {
 public:
  explicit Stepper(const std::string& rule) : rule_(step::rule_number(rule)), stepper_(rule_) {}

  int add_group(const Options& options) { return stepper_.add_group(in_order(rule_, options)); }

  void set_options(int group, const Options& options) { stepper_.set_options(group, in_order(rule_, options)); }

  // One entry of `states` for each of the rule's states; None where it is not kept.
  void add_tensor(int group, const std::string& name, const py::object& param,
                  const std::vector<std::optional<py::object>>& states) {
    const auto& names = step::catalog()[static_cast<std::size_t>(rule_)].states;
    std::vector<Owned> added{own(param, "params", name)};
    std::vector<Array> arrays;
    for (std::size_t s = 0; s < states.size(); ++s) {
      arrays.emplace_back();
      if (!states[s]) continue;
      added.push_back(own(*states[s], ("state " + names[s] + " of params").c_str(), name));
      arrays.back() = added.back().array.view();
      if (arrays.back().dtype != added[0].array.dtype || added.back().array.shape != added[0].array.shape) {
        throw WrongType(added.back().name + " must have its parameter's shape and dtype");
      }
    }
    stepper_.add_tensor(group, name, added[0].array.view(), arrays);
    first_of_.push_back(owned_.size());
    for (Owned& owned : added) owned_.push_back(std::move(owned));
  }

  // No two of the arrays that a step writes may share an element. To be called once, when all tensors are added.
  void check_apart() const {
    std::vector<const Owned*> order;
    for (const Owned& owned : owned_) order.push_back(&owned);
    std::sort(order.begin(), order.end(), [](const Owned* a, const Owned* b) {
      return step::extent(a->array.view()).begin < step::extent(b->array.view()).begin;
    });
    for (std::size_t i = 0; i < order.size(); ++i) {
      const step::Extent mine = step::extent(order[i]->array.view());
      for (std::size_t j = i + 1; j < order.size(); ++j) {
        if (step::extent(order[j]->array.view()).begin >= mine.end) break;
        if (share_memory(order[i]->object, order[j]->object)) {
          const auto [first, second] = std::minmax(order[i], order[j]);
          const bool same = first->array.data == second->array.data && first->array.shape == second->array.shape &&
                            first->array.strides == second->array.strides;
          throw std::invalid_argument(second->name + (same ? " is the same array as " : " overlaps ") + first->name);
        }
      }
    }
  }

  void step(const py::object& grads) {
    // A copy: another thread may change the caller's list, or drop its arrays while the kernel runs.
    const auto held = py::reinterpret_steal<py::tuple>(PySequence_Tuple(grads.ptr()));
    if (!held) throw py::error_already_set();
    if (held.size() != stepper_.size()) {
      throw std::invalid_argument("got " + std::to_string(held.size()) + " gradients for " +
                                  std::to_string(stepper_.size()) + " parameters");
    }

    stepper_.begin();
    for (std::size_t i = 0; i < held.size(); ++i) {
      const py::handle grad = PyTuple_GET_ITEM(held.ptr(), static_cast<py::ssize_t>(i));
      if (grad.is_none()) continue;
      const std::string& name = stepper_.name(i);
      const Array array = view(grad, "grads", name);
      stepper_.set_gradient(i, writable_view(owned_[first_of_[i]].object, "params", name), array);
      if (stepper_.may_overlap(array)) check_overlap(grad, array, name);
    }
    without_gil([this] { stepper_.run(); });
    ++step_count_;
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
  struct Owned {
    py::object object;
    step::KeptArray array;
    std::string name;
  };

  static Owned own(const py::object& object, const char* kind, const std::string& name) {
    return {object, step::KeptArray(target_view(object, kind, name)), kind + name};
  }

  void check_overlap(py::handle grad, const Array& array, const std::string& name) const {
    const step::Extent bytes = step::extent(array);
    for (const Owned& owned : owned_) {
      const step::Extent other = step::extent(owned.array.view());
      if (bytes.begin < other.end && other.begin < bytes.end && share_memory(grad, owned.object)) {
        throw std::invalid_argument("grads" + name + " overlaps " + owned.name + ", which the step writes");
      }
    }
  }

  int rule_;
  step::Stepper stepper_;
  std::vector<Owned> owned_;           // each tensor's parameter, then its states
  std::vector<std::size_t> first_of_;  // where in owned_ a tensor's parameter is
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
      entry["states"] = info.states;
      all.append(entry);
    }
    return all;
  });
  m.def(
      "check_param", [](const py::object& param, const std::string& name) { target_view(param, "params", name); },
      py::arg("param"), py::arg("name"));
  m.def("kept_states", &kept_states, py::arg("rule"), py::arg("options"));

  py::class_<Stepper>(m, "Stepper")
      .def(py::init<const std::string&>(), py::arg("rule"))
      .def("add_group", &Stepper::add_group, py::arg("options"))
      .def("set_options", &Stepper::set_options, py::arg("group"), py::arg("options"))
      .def("add_tensor", &Stepper::add_tensor, py::arg("group"), py::arg("name"), py::arg("param"), py::arg("states"))
      .def("check_apart", &Stepper::check_apart)
      .def("step", &Stepper::step, py::arg("grads"))
      .def_property("step_count", &Stepper::step_count, &Stepper::set_step_count)
      .def_property("clocks", &Stepper::clocks, &Stepper::set_clocks);
}

}  // namespace gradstep::bind
