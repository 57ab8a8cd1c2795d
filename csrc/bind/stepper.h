#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "bind/arrays.h"
#include "bind/dict.h"
#include "bind/gc.h"
#include "bind/gil.h"
#include "bind/options.h"
#include "bind/rows.h"
#include "bind/step_result.h"
#include "bind/tree.h"
#include "step/catalog.h"
#include "step/norm.h"
#include "step/stepper.h"

namespace gradstep::bind {

namespace py = pybind11;

// The view of an array that steps will write.
template <class Arrays>
Array target_view(Arrays& arrays, py::handle object, const std::string& kind, const std::string& name,
                  bool codes = false) {
  const Array array = arrays.writable_view(object, kind, name, codes);
  if (step::overlaps_itself(array)) {
    throw std::invalid_argument(kind + name + " has strides that let its own elements overlap");
  }
  return array;
}

// The core's stepper for the arrays of one kind. Not thread-safe: the Python class has a lock.
template <class Arrays>
class Stepper {
 public:
  using Watched = typename Arrays::Watched;

  // Steps of fewer elements keep the GIL: to release and to take it took 0.1 us, as long as the update of 100 elements
  // by Adam (an EPYC of Zen 4), and no thread waits longer than 2 us for these.
  static constexpr std::int64_t kFewElements = 4096;

  // With a tree, add_tensors() is given its leaves in order, and steps take gradients in the same nesting; else a list.
  Stepper(const py::object& tree, const std::string& params, const std::string& grads)
      : params_(params),
        grads_(grads),
        stepper_(arrays_.backend(), params, grads),
        tree_object_(tree),
        tree_(tree.is_none() ? nullptr : tree.cast<const Tree*>()) {
    master_kind_ = "state master of " + params;
    master_name_ = interned("master");
    average_kind_ = "state average of " + params;
    average_name_ = interned("average");
  }

  // Waits for steps that still use a device's memory, without the GIL, which their callers may need.
  ~Stepper() {
    if constexpr (Arrays::kOnDevice) without_gil([this] { stepper_.release(); });
  }
  Stepper(const Stepper&) = delete;
  Stepper& operator=(const Stepper&) = delete;

  // Sets a flag as long as it lives.
  class Flag {
   public:
    explicit Flag(bool& flag) : flag_(flag), before_(std::exchange(flag, true)) {}
    ~Flag() { flag_ = before_; }
    Flag(const Flag&) = delete;
    Flag& operator=(const Flag&) = delete;

   private:
    bool &flag_, before_;
  };

  // For the garbage collector. The vectors change only while the GIL is held, and steps without it leave them alone.
  int traverse(visitproc visit, void* arg) const {
    for (const Watched& owned : owned_) {
      if (const int stop = owned.traverse(visit, arg)) return stop;
    }
    for (const auto& [tensor, grad] : bound_) {
      if (const int stop = grad.traverse(visit, arg)) return stop;
    }
    if (bound_tree_) {
      if (const int stop = bound_tree_->traverse(visit, arg)) return stop;
    }
    if (copy_tree_) {
      if (const int stop = copy_tree_->traverse(visit, arg)) return stop;
    }
    Py_VISIT(tree_object_.ptr());
    Py_VISIT(exchange_.ptr());
    Py_VISIT(stepped_.ptr());
    for (const auto& [name, zeros] : unmade_) Py_VISIT(zeros.object.ptr());
    for (const auto& [step, scalar] : clocks_) {
      for (const std::optional<BoundNumber>* number : {&step, &scalar}) {
        if (!*number) continue;
        if (const int stop = (*number)->watched.traverse(visit, arg)) return stop;
      }
    }
    return arrays_.traverse(visit, arg);
  }

  // For the garbage collector: afterwards this is a new stepper, without groups and tensors.
  void clear() {
    Arrays arrays;
    step::Stepper stepper(arrays.backend(), params_, grads_);
    const std::vector<Watched> owned = std::exchange(owned_, {});
    const auto bound = std::exchange(bound_, {});
    const auto bound_tree = std::exchange(bound_tree_, {});
    const auto copy_tree = std::exchange(copy_tree_, {});
    const auto tree = std::exchange(tree_object_, {});
    const auto exchange = std::exchange(exchange_, {});
    const auto stepped = std::exchange(stepped_, {});
    const auto unmade = std::exchange(unmade_, {});
    const auto clocks = std::exchange(clocks_, {});
    tree_ = nullptr;
    std::swap(arrays_, arrays);
    std::swap(stepper_, stepper);
    seals_.clear(), bound_seals_.clear(), rules_.clear(), group_of_.clear(), frozen_.clear();
    first_of_.resize(1);
    elements_ = 0;
    is_bound_ = has_tensors_ = false;
    if constexpr (Arrays::kOnDevice) without_gil([&] { stepper.release(); });
  }

  Arrays& arrays() { return arrays_; }

  int add_group(const std::string& rule, const Options& options) {
    const int number = step::rule_number(rule);
    const int group = stepper_.add_group(number, in_order(number, options));
    rules_.push_back(&names_.try_emplace(number, number, params_).first->second);
    return group;
  }

  void set_options(int group, const Options& options) {
    stepper_.set_options(group, in_order(rule_of(group).number, options));
  }

  void check_options(int group, const Options& options) const {
    stepper_.check_options(group, in_order(rule_of(group).number, options));
  }
  void set_number(int group, const std::string& name, double value) { stepper_.set_number(group, name, value); }

  // None: no such limit; at most one of the limits is given.
  void set_gradient_pass(const std::optional<double>& clip_norm, const std::optional<double>& clip_per_tensor,
                         const std::string& on_nonfinite) {
    PassOptions asked{};
    asked.clipping = clip_norm ? Clipping::kGlobal : clip_per_tensor ? Clipping::kPerTensor : Clipping::kNone;
    asked.limit = clip_norm ? *clip_norm : clip_per_tensor.value_or(0);
    asked.skips_nonfinite = on_nonfinite != "propagate";
    stepper_.set_gradient_pass(asked);
    raises_ = on_nonfinite == "raise";
  }

  // Makes the tensors parts of wholes: pairs of the first element and the size of the whole. `exchange` is called with
  // the sums of squares of the chunks of the parts, and the tensor and element of the first gradient that is not
  // finite, or -1 and -1; it returns the same of the wholes. Steps update buckets of these numbers of elements, and
  // call `stepped` with the number of those that were updated; with 0 before a step without a gradient pass.
  void set_parts(const std::vector<std::pair<std::int64_t, std::int64_t>>& parts, const py::object& exchange,
                 const std::vector<std::int64_t>& buckets, const py::object& stepped) {
    std::vector<step::Part> all;
    for (const auto& [first, whole] : parts) all.push_back({first, whole});
    step::Stepped call_stepped;
    if (!stepped.is_none()) {
      call_stepped = [this](std::size_t count) {
        const py::gil_scoped_acquire gil;
        stepped_(count);
      };
    }
    const auto call_exchange = [this](step::Squares& squares) {
      const py::gil_scoped_acquire gil;
      const auto [tensor, element] = squares.nonfinite;
      const auto size = static_cast<py::ssize_t>(squares.of_chunks.size());
      const py::object returned = exchange_(py::array_t<double>(size, squares.of_chunks.data()),
                                            element < 0 ? -1 : static_cast<std::int64_t>(tensor), element);
      using Sums = py::array_t<double, py::array::c_style | py::array::forcecast>;
      const auto [sums, of_tensor, of_element] = returned.cast<std::tuple<Sums, std::int64_t, std::int64_t>>();
      squares.of_chunks.assign(sums.data(), sums.data() + sums.size());
      squares.nonfinite = {static_cast<std::uint32_t>(of_tensor), of_element};
    };
    stepper_.set_parts(std::move(all), call_exchange, buckets, std::move(call_stepped));
    exchange_ = exchange;
    stepped_ = stepped;
  }

  // Sets whether steps leave the group's tensors as they are.
  void set_frozen(int group, bool frozen) {
    for (std::size_t i = 0; i < frozen_.size(); ++i) {
      if (group_of_[i] == group) frozen_[i] = frozen;
    }
    if (is_bound_) set_bound_gradients();
  }

  bool is_captured() const { return stepper_.is_captured(); }

  // Throws where steps cannot write a parameter, or only read it where it is not `written`. States are not needed yet.
  void check_params(const py::list& params, bool written) {
    for (std::size_t i = 0; i < params.size(); ++i) {
      const std::string name = tree_ == nullptr ? "" : tree_->suffix(i);
      if (written) {
        target_view(arrays_, params[i], params_, name);
      } else {
        arrays_.view(params[i], params_, name);
      }
    }
  }

  // The last step's result. Waits for a device.
  py::object result() {
    std::optional<GradientPass> pass;
    std::int64_t step_count = 0;
    std::vector<TensorNorms> norms;
    may_wait([&] {
      pass = stepper_.gradient_pass();
      step_count = stepper_.step_count();
      norms = stepper_.norms();
    });
    return make_step_result(step_count, pass, norms, [this](std::size_t tensor) { return path(tensor); });
  }

  std::optional<double> grad_norm() {
    std::optional<GradientPass> pass;
    without_gil([&] { pass = stepper_.gradient_pass(); });
    return pass ? std::optional(pass->norm) : std::nullopt;
  }

  // Adds tensors with the kept arrays of each, by name: states, `<state>_scale` for codes, and `master`. Steps update a
  // master, and set the parameter to its rounding. `kept` is a list of dicts, or a dict of lists with None where an
  // array is not kept; Zeros may stand for a list, and are made arrays by make_states().
  // `copies` is a nest of arrays, or None in place of one, that steps set to the parameters; None: there are none.
  // `names` are those of the tensors in messages, where there is no tree.
  void add_tensors(const std::vector<int>& groups, const py::list& params,
                   const std::variant<py::dict, std::vector<py::dict>>& kept, const py::object& copies,
                   const std::vector<std::string>& names) {
    given_names_ = names;
    const auto* const rows = std::get_if<std::vector<py::dict>>(&kept);
    bool fits = params.size() == groups.size() && (rows == nullptr || rows->size() == groups.size());
    std::size_t columns = 0;
    if (rows == nullptr) {
      for (const auto& [name, column] : std::get<py::dict>(kept)) {
        if (const auto* const zeros = Arrays::as_zeros(column)) {
          fits = fits && stepper_.size() == 0 && zeros->size() == groups.size();
          unmade_[name.template cast<std::string>()] = {py::reinterpret_borrow<py::object>(column), zeros};
        } else {
          fits = fits && PyList_Check(column.ptr()) && py::len(column) == groups.size();
          ++columns;
        }
      }
    } else if (!rows->empty()) {
      columns = (*rows)[0].size();
    }
    if (!fits) throw std::invalid_argument("groups, params and kept must have the same length");
    const PausedCollector paused;
    stepper_.reserve(groups.size());
    group_of_.reserve(group_of_.size() + groups.size());
    frozen_.reserve(frozen_.size() + groups.size());
    first_of_.reserve(first_of_.size() + groups.size());
    py::tuple of_copies;
    if (!copies.is_none()) {
      of_copies = tree_->flatten(copies, copies_);
      copy_tree_.emplace(copies, copies_);
    }
    owned_.reserve(owned_.size() + groups.size() * (1 + columns));
    seals_.reserve(owned_.capacity());
    for (std::size_t i = 0; i < groups.size(); ++i) {
      const Kept of_tensor = rows == nullptr ? Kept{std::get<py::dict>(kept), i} : Kept{(*rows)[i]};
      add_tensor(groups[i], params[i], of_tensor, copies.is_none() ? copies : py::object(of_copies[i]));
      group_of_.push_back(groups[i]);
      frozen_.push_back(false);
    }
  }

  // Puts lists of arrays in place of the Zeros in `kept`, which add_tensors() was given. From now on steps check these
  // arrays, too, because whoever has one may change its header.
  void make_states(const py::dict& kept) {
    if (unmade_.empty()) return;
    std::map<std::string, py::list> columns;
    for (const auto& [name, zeros] : unmade_) columns.emplace(name, py::list(stepper_.size()));
    std::vector<Watched> made;
    for (std::size_t i = 0; i < stepper_.size(); ++i) {
      const Rule& rule = rule_of(group_of_[i]);
      for (std::size_t s = 0; s < rule.kinds.size(); ++s) {
        const auto unmade = unmade_.find(rule.info.states[s].name);
        if (unmade == unmade_.end()) continue;
        py::object array = unmade->second.zeros->make(i);
        made.emplace_back(array, unmade->second.zeros->view(i), &rule.kinds[s], i, Role::kState);
        PyList_SET_ITEM(columns[unmade->first].ptr(), static_cast<py::ssize_t>(i), array.release().ptr());
      }
    }
    std::vector<Watched> owned;
    std::vector<typename Arrays::Seal> seals;
    owned.reserve(owned_.size() + made.size());
    seals.reserve(owned.capacity());
    for (const auto& [name, column] : columns) kept[py::str(name)] = column;
    unmade_.clear();  // from here on nothing throws
    auto next = made.begin();
    for (std::size_t i = 0; i < stepper_.size(); ++i) {
      const std::size_t first = owned.size();
      for (std::size_t k = first_of_[i]; k < first_of_[i + 1]; ++k) {
        owned.push_back(std::move(owned_[k]));
        seals.push_back(seals_[k]);  // its header may have changed meanwhile
      }
      first_of_[i] = first;
      for (; next != made.end() && next->tensor == i; ++next) {
        owned.push_back(std::move(*next));
        seals.push_back(owned.back().seal());
      }
    }
    first_of_[stepper_.size()] = owned.size();
    owned_ = std::move(owned);
    seals_ = std::move(seals);
  }

  // Steps the memory that tensors have now, where it is not the one that they had. Their arrays are those of
  // add_tensors(), or others of the same shapes and types. Returns the number of tensors that were moved.
  int move_tensors(const py::list& params, const std::vector<py::dict>& kept) {
    if (params.size() != stepper_.size() || kept.size() != stepper_.size() || copy_tree_) {
      throw std::invalid_argument("params and kept must be those of all tensors, without copies");
    }
    int moved = 0;
    for (std::size_t i = 0; i < kept.size(); ++i) {
      const std::size_t first = first_of_[i], count = first_of_[i + 1] - first;
      bool holds = true;
      for (std::size_t k = first; k < first + count; ++k) holds = holds && seals_[k].holds();
      if (holds && owned_[first].object.is(params[i])) continue;
      Adding adding(*this, i, stepper_.name(i));
      view_tensor(adding, group_of_[i], params[i], Kept{kept[i]}, py::none(),
                  [&](const Array& of, const auto& states, const auto& beside) {
                    if (adding.added.size() != count) throw std::invalid_argument("a tensor keeps other arrays");
                    stepper_.move_tensor(i, of, states, beside);
                  });
      for (std::size_t k = 0; k < count; ++k) {
        owned_[first + k] = std::move(adding.added[k]);
        seals_[first + k] = owned_[first + k].seal();
      }
      ++moved;
    }
    return moved;
  }

  // Takes the step number of each tensor from `steps`, where it is not what was written there, and the rule's scalar
  // from `scalars`, and writes them there after each step: arrays without axes, of float32 or float64, or None. Returns
  // how many of those that were bound before had been moved.
  int bind_clocks(const py::list& steps, const py::list& scalars) {
    if (steps.size() != stepper_.size() || scalars.size() != stepper_.size()) {
      throw std::invalid_argument("there must be a step number and a scalar, or None, for each tensor");
    }
    std::vector<BoundClock> bound;
    for (std::size_t i = 0; i < steps.size(); ++i) {
      bound.push_back({number_view(steps[i], i), number_view(scalars[i], i)});
      if (bound.back().scalar && this->scalars(i) == 0) throw std::invalid_argument("this rule has no scalar");
    }
    int moved = 0;
    for (const auto& [step, scalar] : clocks_)
      moved += (step && !step->seal.holds()) + (scalar && !scalar->seal.holds());
    clocks_ = std::move(bound);
    const step::StepState state = stepper_.state();
    for (std::size_t i = 0; i < clocks_.size(); ++i) write_clock(i, state.clocks[i]);
    return moved;
  }

  // Throws where a step would, whatever its gradients are.
  void check_arrays() const {
    if (tree_ != nullptr) tree_->check_unchanged();
    if (copy_tree_) copy_tree_->check_unchanged();
    for (std::size_t i = 0; i < frozen_.size(); ++i) {
      if (!frozen_[i]) check_unmoved(i);
    }
  }

  // The pairs of arrays that steps write whose address ranges intersect; no two may share an element.
  std::vector<PossibleOverlap> possible_overlaps() const {
    std::vector<std::pair<step::Extent, const Watched*>> order;
    for (const Watched& owned : owned_) order.emplace_back(step::extent(owned.view()), &owned);
    std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first.begin < b.first.begin; });
    std::vector<PossibleOverlap> found;
    for (std::size_t i = 0; i < order.size(); ++i) {
      for (std::size_t j = i + 1; j < order.size() && order[j].first.begin < order[i].first.end; ++j) {
        if (step::surely_apart(order[i].second->view(), order[j].second->view())) continue;
        const auto [first, second] = std::minmax(order[i].second, order[j].second);
        const Array a = first->view(), b = second->view();
        const bool same = a.data == b.data && a.dtype == b.dtype && a.rank == b.rank &&
                          step::same(a.shape, b.shape, a.rank) && step::same(a.strides, b.strides, a.rank);
        found.emplace_back(arrays_.to_compare(first->object, first->view()),
                           arrays_.to_compare(second->object, second->view()),
                           label(*second) + (same ? " is the same array as " : " overlaps ") + label(*first));
      }
    }
    return found;
  }

  // Takes a step with gradients that are divided by `grad_scale`; `...` stands for bound ones. `clears`: the gradients
  // are accumulators, which become zero; these may be given beside bound ones. `stats`: the norms of tensors are
  // measured. Returns its result, or None where that would wait for a device. If the address ranges of gradients and of
  // arrays that steps write intersect, it only prepares the step and returns the gradients and their possible overlaps;
  // run() with the gradients then takes the step. NumPy's exact test of overlap may not run here: when the interpreter
  // ends, a thread that waits for the GIL is unwound, and these frames would drop references without holding it.
  py::object step(const py::object& grads, double grad_scale, bool clears, bool stats) {
    const Flag stepping(is_stepping_);
    spot_check();
    if (tree_ != nullptr) tree_->check_unchanged();
    if (copy_tree_) copy_tree_->check_unchanged();
    py::tuple held;
    if (grads.is(py::ellipsis())) {
      if (!is_bound_) throw WrongType("step() needs gradients, because none were bound with the optimizer");
      if (bound_tree_) bound_tree_->check_unchanged();
      std::size_t place = 0;
      for (const auto& [tensor, grad] : bound_) {
        check_unmoved(tensor);
        if (!bound_seals_[place++].holds()) grad.check_closely(label(grad));
      }
    } else {
      if (is_bound_ && !clears)
        throw WrongType("step() takes no gradients, because they were bound with the optimizer");
      held = flatten(grads);
      std::vector<PossibleOverlap> possible_overlaps = set_gradients(held);
      if (!possible_overlaps.empty()) return py::make_tuple(std::move(held), std::move(possible_overlaps));
    }
    py::object result = run(held, {grad_scale, clears, stats});
    if (clears && is_bound_) set_bound_gradients();
    return result;
  }

  // Takes the step that step() prepared, with the gradients that it returned. They are set again, because other steps
  // may have been taken since then, by a signal handler or a finalizer.
  py::object run_prepared(const py::tuple& held, double grad_scale, bool stats) {
    set_gradients(held);
    return run(held, {grad_scale, false, stats});
  }

  // Whether code of the user's that was called by a step is running.
  bool is_stepping() const { return is_stepping_; }

  // The argument keeps its gradients alive.
  py::object run(const py::tuple&, const step::RunOptions& options) {
    if (!clocks_.empty()) read_clocks();
    if (elements_ < kFewElements && !Arrays::kOnDevice) {
      stepper_.run(options);
    } else {
      without_gil([&] { stepper_.run(options); });
    }
    if (has_tensors_) publish_written();
    if (!clocks_.empty()) write_clocks();
    if (raises_) refuse_nonfinite();
    if constexpr (Arrays::kOnDevice) return py::none();
    return result();
  }

  // Tells libraries that keep versions of their tensors which parameters and copies the step has written.
  void publish_written() const {
    typename Arrays::Written written;
    for (std::size_t i = 0; i < frozen_.size(); ++i) {
      if (!stepper_.takes_part(i)) continue;
      for (std::size_t k = first_of_[i]; k < first_of_[i + 1]; ++k) {
        if (owned_[k].kind == &params_ || owned_[k].kind == &copies_) written.add(owned_[k].object);
      }
    }
    written.publish();
  }

  // Raises FloatingPointError if the last step was skipped. Waits for a device.
  void refuse_nonfinite() {
    std::optional<GradientPass> pass;
    may_wait([&] { pass = stepper_.gradient_pass(); });
    if (!pass || !pass->skip) return;
    const auto [tensor, element] = pass->nonfinite;
    const Array array = owned_[first_of_[tensor]].view();
    std::string index;
    std::int64_t rest = element;
    for (int axis = array.rank; axis-- > 0;) {
      const std::int64_t along = axis == 0 ? rest : rest % array.shape[axis];  // of a part, from the whole's beginning
      index = std::to_string(along) + (index.empty() ? "" : ", ") + index;
      if (axis > 0) rest /= array.shape[axis];
    }
    PyErr_SetString(PyExc_FloatingPointError, (grads_ + stepper_.name(tensor) + " is not finite at [" + index +
                                               "], flat index " + std::to_string(element) + "; the step was not taken")
                                                  .c_str());
    throw py::error_already_set();
  }

  // Binds gradients for every later step; returns their possible overlaps.
  std::vector<PossibleOverlap> bind(const py::object& grads) {
    const py::tuple held = flatten(grads);
    for (std::size_t i = 0; i < held.size(); ++i) {
      if (is_rows(held[i])) throw WrongType(grads_ + stepper_.name(i) + " is a Rows; bound gradients are arrays");
    }
    std::vector<PossibleOverlap> possible_overlaps = set_gradients(held);
    is_bound_ = true;
    if (tree_ != nullptr) bound_tree_.emplace(grads, grads_);
    for (std::size_t i = 0; i < held.size(); ++i) {
      const py::object grad = held[i];
      if (grad.is_none()) continue;
      const Array array = arrays_.view(grad, grads_, stepper_.name(i));
      bound_.emplace_back(i, Watched(grad, array, &grads_, i, Role::kGradient));
      bound_seals_.push_back(bound_.back().second.seal());
    }
    return possible_overlaps;
  }

  std::int64_t step_count() {
    std::int64_t taken = 0;
    may_wait([&] { taken = stepper_.step_count(); });
    return taken;
  }

  // Each tensor's own step number, the rule's scalars, and the product of the decays of the average.
  using Clocks = std::vector<std::pair<std::int64_t, std::vector<double>>>;
  Clocks clocks() {
    Clocks all;
    step::StepState state;
    may_wait([&] { state = stepper_.state(); });
    for (std::size_t i = 0; i < state.clocks.size(); ++i) {
      const rules::Clock& clock = state.clocks[i];
      std::vector<double> values(clock.scalars, clock.scalars + scalars(i));
      values.push_back(clock.ema_product);
      all.emplace_back(clock.t, std::move(values));
    }
    return all;
  }

  void set_times(std::int64_t step_count, const Clocks& all) {
    step::StepState state{step_count, {}};
    for (std::size_t i = 0; i < all.size(); ++i) {
      const auto& [t, values] = all[i];
      if (i >= group_of_.size() || values.size() != scalars(i) + 1)
        throw std::invalid_argument("each of the rule's scalars is needed");
      rules::Clock& clock = state.clocks.emplace_back();
      clock.t = t;
      std::copy(values.begin(), values.end() - 1, clock.scalars);
      clock.ema_product = values.back();
    }
    may_wait([&] { stepper_.set_state(state); });
  }

 private:
  static py::str interned(const std::string& name) {
    return py::reinterpret_steal<py::str>(PyUnicode_InternFromString(name.c_str()));
  }

  // A rule of a group, and the names of its states: as keys, and in messages.
  struct Rule {
    Rule(int the_number, const std::string& params)
        : number(the_number), info(step::catalog()[static_cast<std::size_t>(number)]) {
      for (const rules::State& state : info.states) {
        kinds.push_back("state " + std::string(state.name) + " of " + params);
        names.push_back(interned(state.name));
        scale_names.push_back(interned(std::string(state.name) + "_scale"));
        scale_kinds.push_back("the scales of " + kinds.back());
      }
    }

    int number;
    const step::RuleInfo& info;
    std::vector<std::string> kinds, scale_kinds;
    std::vector<py::str> names, scale_names;
  };

  const Rule& rule_of(int group) const {
    if (group < 0 || static_cast<std::size_t>(group) >= rules_.size()) {
      throw std::invalid_argument("there is no group " + std::to_string(group));
    }
    return *rules_[static_cast<std::size_t>(group)];
  }
  std::size_t scalars(std::size_t tensor) const { return rule_of(group_of_[tensor]).info.scalars.size(); }

  // The name of a tensor in the face: that in messages, which may begin with a dot, without it.
  std::string path(std::size_t tensor) const {
    const std::string& name = stepper_.name(tensor);
    return name.empty() || name[0] != '.' ? name : name.substr(1);
  }

  // The name of an array in messages.
  std::string label(const Watched& watched) const { return *watched.kind + name_of(watched.tensor); }
  std::string name_of(std::size_t tensor) const {
    return tensor < stepper_.size() ? stepper_.name(tensor) : next_name();
  }
  std::string next_name() const {
    const std::size_t next = stepper_.size();
    return tree_ != nullptr ? tree_->suffix(next) : next < given_names_.size() ? given_names_[next] : "";
  }

  // A state of all tensors whose arrays have not been made.
  struct Unmade {
    py::object object;
    const typename Arrays::Zeros* zeros;  // in it
  };

  // The arrays that are kept for a tensor, by name: those of a dict, or an item of each list of a dict.
  struct Kept {
    const py::dict& of;
    std::optional<std::size_t> item = {};

    // Null where it is not kept.
    py::object find(const py::str& name) const {
      py::object found = entry_of(of.ptr(), name.ptr());
      if (PyErr_Occurred() != nullptr) throw py::error_already_set();
      if (found && item)
        found = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(found.ptr(), static_cast<py::ssize_t>(*item)));
      return found.is_none() ? py::object() : found;
    }
  };

  // Collects the arrays of the next tensor.
  class Adding {
   public:
    Adding(Stepper& stepper, std::size_t the_tensor, std::string the_name)
        : of(stepper), tensor(the_tensor), name(std::move(the_name)) {}

    Array own(const py::object& object, const std::string& kind, Role role, bool codes = false) {
      const Array array = target_view(of.arrays_, object, kind, name, codes);
      added.emplace_back(object, array, &kind, tensor, role);
      return added.back().view();
    }

    // A state with a value for each element of its parameter.
    Array own_like_param(const py::object& state, const std::string& kind, bool codes = false,
                         Role role = Role::kState) {
      return like_param(own(state, kind, role, codes), kind);
    }

    Array like_param(const Array& array, const std::string& kind) const {
      const Array param = added[0].view();
      if (array.rank != param.rank || !step::same(array.shape, param.shape, param.rank)) {
        throw std::invalid_argument(kind + name + " must have its parameter's shape");
      }
      return array;
    }

    Array own_state(const Kept& kept, const Rule& rule, std::size_t s) {
      const rules::State& about = rule.info.states[s];
      const std::string& kind = rule.kinds[s];
      const auto unmade = of.unmade_.find(about.name);
      const bool made = unmade == of.unmade_.end();
      const py::object state = made ? kept.find(rule.names[s]) : py::object();
      if (made && !state) return {};
      const DType param = added[0].view().dtype;
      const bool single = compute_of(param) == Compute::kFloat;
      const py::object given = made ? kept.find(rule.scale_names[s]) : py::object();
      if (!given) {
        const Array array =
            made ? own_like_param(state, kind, true) : like_param(unmade->second.zeros->view(tensor), kind);
        const unsigned role = about.non_negative ? kAsNonNegativeState : kAsSignedState;
        const bool fits = compute_of(array.dtype) == compute_of(param) && !has_scales(array.dtype);
        if (fits && may_be(array.dtype, role)) return array;
        throw WrongType(
            kind + name + " is " + dtype_name(array.dtype) + ", but must be " +
            (single ? "float32, bfloat16 or float16, or codes with their scales" : "float64, as its parameter is"));
      }
      Array codes = own_like_param(state, kind, true);
      const DType wanted = about.non_negative ? DType::kQ8Unsigned : DType::kQ8Signed;
      if (codes.dtype != wanted || !single || !step::is_packed(codes)) {
        throw WrongType(kind + name + " must be " + dtype_name(wanted) +
                        " codes without gaps in C order, of a float32, float16 or bfloat16 parameter");
      }
      const Array scales = own(given, rule.scale_kinds[s], Role::kState);
      if (scales.dtype != DType::kFloat32 || scales.rank != 1 || scales.shape[0] != blocks_of(step::size_of(codes)) ||
          !step::is_packed(scales)) {
        throw WrongType(rule.scale_kinds[s] + name + " must be float32, of one axis, one for each " +
                        std::to_string(kBlock) + " elements, without gaps");
      }
      codes.scales = reinterpret_cast<float*>(scales.data);
      return codes;
    }

    Stepper& of;
    const std::size_t tensor;
    const std::string name;
    std::vector<Watched> added;
  };

  // Views the arrays of a tensor, checks them, and hands them to visit(parameter, states, beside).
  template <class Visit>
  void view_tensor(Adding& adding, int group, const py::object& param, const Kept& kept, const py::object& copy,
                   const Visit& visit) {
    const Rule& rule = rule_of(group);
    adding.added.reserve(2 * rule.info.states.size() + 4);  // views point into it
    const Array of = adding.own(param, params_, Role::kParameter);
    std::vector<Array> states;
    states.reserve(rule.info.states.size());
    for (std::size_t s = 0; s < rule.info.states.size(); ++s) states.push_back(adding.own_state(kept, rule, s));
    typename step::Stepper::Beside beside;
    Array& master = beside.master;
    if (const py::object given = kept.find(master_name_)) {
      master = adding.own_like_param(given, master_kind_);
      if (master.dtype != DType::kFloat32 || gradstep::info(of.dtype).kind != CodecKind::kNarrow) {
        throw WrongType(master_kind_ + adding.name + " must be float32, and its parameter of 16 bits");
      }
    }
    if (const py::object given = kept.find(average_name_)) {
      beside.average = adding.own_like_param(given, average_kind_);
      if (!is_native(beside.average.dtype, compute_of(of.dtype))) {
        throw WrongType(average_kind_ + adding.name + " must have the type that its parameter is computed in");
      }
    }
    if (!copy.is_none()) {
      beside.copy = adding.own_like_param(copy, copies_, false, Role::kParameter);
      if (master.data != nullptr) {
        throw std::invalid_argument(copies_ + adding.name + " has no place where master is True: " + params_ +
                                    adding.name + " is the copy of its master");
      }
      const bool fits = compute_of(of.dtype) == Compute::kDouble
                            ? gradstep::info(beside.copy.dtype).kind == CodecKind::kNative
                            : compute_of(beside.copy.dtype) == Compute::kFloat;
      if (!fits) {
        throw WrongType(copies_ + adding.name + " is " + dtype_name(beside.copy.dtype) + ", but must be " +
                        (compute_of(of.dtype) == Compute::kDouble
                             ? "float32 or float64, because its parameter is float64"
                             : "float16, bfloat16 or float32"));
      }
    }
    visit(of, states, beside);
  }

  void add_tensor(int group, const py::object& param, const Kept& kept, const py::object& copy) {
    Adding adding(*this, stepper_.size(), next_name());
    view_tensor(adding, group, param, kept, copy, [&](const Array& of, const auto& states, const auto& beside) {
      stepper_.add_tensor(group, adding.name, of, states, beside);
      elements_ += step::size_of(of);
    });
    has_tensors_ = has_tensors_ || Arrays::is_tensor(param);
    for (Watched& owned : adding.added) {
      owned_.push_back(std::move(owned));
      seals_.push_back(owned_.back().seal());
    }
    first_of_.push_back(owned_.size());
  }

  // A number of Python's library of arrays, in an array without axes that others may change.
  struct BoundNumber {
    Watched watched;
    typename Arrays::Seal seal;

    double get() const {
      const Array array = watched.view();
      return array.dtype == DType::kFloat64 ? load<double>(array.data) : double{load<float>(array.data)};
    }
    void set(double value) const {
      const Array array = watched.view();
      array.dtype == DType::kFloat64 ? store(array.data, value) : store(array.data, static_cast<float>(value));
    }
    // What remains of a value that is stored there.
    double rounded(double value) const {
      return watched.view().dtype == DType::kFloat64 ? value : double{static_cast<float>(value)};
    }

   private:
    template <class T>
    static T load(const std::byte* from) {
      T value;
      std::memcpy(&value, from, sizeof value);
      return value;
    }
    template <class T>
    static void store(std::byte* to, T value) {
      std::memcpy(to, &value, sizeof value);
    }
  };
  struct BoundClock {
    std::optional<BoundNumber> step, scalar;
  };

  std::optional<BoundNumber> number_view(const py::object& object, std::size_t tensor) {
    if (object.is_none()) return {};
    const Array array = target_view(arrays_, object, count_kind_, stepper_.name(tensor));
    if (array.rank != 0 || gradstep::info(array.dtype).kind != CodecKind::kNative) {
      throw WrongType(count_kind_ + stepper_.name(tensor) + " must be float32 or float64, without axes");
    }
    Watched watched(object, array, &count_kind_, tensor, Role::kState);
    const typename Arrays::Seal seal = watched.seal();
    return BoundNumber{std::move(watched), seal};
  }

  void read_clocks() {
    step::StepState state = stepper_.state();
    bool changed = false;
    for (std::size_t i = 0; i < clocks_.size(); ++i) {
      if (!stepper_.takes_part(i)) continue;  // then its memory was not checked
      rules::Clock& clock = state.clocks[i];
      const auto& [step, scalar] = clocks_[i];
      if (step) {
        const double t = step->get();
        if (!(t >= 0 && t < 0x1p62)) {
          throw std::invalid_argument(label(step->watched) + " is " + std::to_string(t) + ", and no number of a step");
        }
        if (t != step->rounded(static_cast<double>(clock.t))) clock.t = static_cast<std::int64_t>(t), changed = true;
      }
      if (scalar && scalar->get() != clock.scalars[0]) clock.scalars[0] = scalar->get(), changed = true;
    }
    if (changed) stepper_.set_state(state);
  }

  void write_clocks() {
    const step::StepState state = stepper_.state();
    for (std::size_t i = 0; i < clocks_.size(); ++i) {
      if (stepper_.takes_part(i)) write_clock(i, state.clocks[i]);
    }
  }

  void write_clock(std::size_t tensor, const rules::Clock& clock) const {
    const auto& [step, scalar] = clocks_[tensor];
    if (step) step->set(static_cast<double>(clock.t));
    if (scalar) scalar->set(clock.scalars[0]);
  }

  // Runs f without the GIL where it may wait for a device.
  template <class F>
  void may_wait(const F& f) {
    if constexpr (Arrays::kOnDevice) {
      without_gil(f);
    } else {
      f();
    }
  }

  // Checks a few of the arrays, in turn, where checking all would take too long.
  void spot_check() {
    if constexpr (Arrays::kSpotChecks > 0) {
      const std::size_t count = owned_.size() + bound_.size();
      for (std::size_t i = 0; i < std::min<std::size_t>(Arrays::kSpotChecks, count); ++i) {
        checked_ = (checked_ + 1) % count;
        const Watched& watched = checked_ < owned_.size() ? owned_[checked_] : bound_[checked_ - owned_.size()].second;
        if (!arrays_.is_unmoved(watched)) {
          throw std::invalid_argument(label(watched) + " was moved or reshaped after the optimizer was made");
        }
      }
    }
  }

  // Checks a tensor's parameter and states.
  void check_unmoved(std::size_t tensor) const {
    for (std::size_t k = first_of_[tensor]; k < first_of_[tensor + 1]; ++k) {
      if (!seals_[k].holds()) owned_[k].check_closely(label(owned_[k]));
    }
    if (clocks_.empty()) return;
    const auto& [step, scalar] = clocks_[tensor];
    for (const std::optional<BoundNumber>* number : {&step, &scalar}) {
      if (*number && !(*number)->seal.holds()) (*number)->watched.check_closely(label((*number)->watched));
    }
  }

  // Gradients as a new tuple, because another thread may change the caller's containers while the kernel runs.
  py::tuple flatten(const py::object& grads) const {
    if (tree_ != nullptr) return tree_->flatten(grads, grads_);
    auto held = py::reinterpret_steal<py::tuple>(PySequence_Tuple(grads.ptr()));
    if (!held) throw py::error_already_set();
    if (held.size() != stepper_.size()) throw std::invalid_argument("there must be a gradient for each parameter");
    return held;
  }

  std::vector<PossibleOverlap> set_gradients(const py::tuple& held) {
    std::vector<PossibleOverlap> possible_overlaps;
    stepper_.begin();
    PyObject** const grads = &PyTuple_GET_ITEM(held.ptr(), 0);
    for (std::size_t i = 0, size = held.size(); i < size; ++i) {
      py::handle grad = grads[i];
      if (grad.is_none() || frozen_[i]) continue;
      Array array;
      if (!arrays_.view_like(grad, stepper_.gradient_dtype(i), array)) {
        if (is_rows(grad)) {
          set_rows(grad, i, possible_overlaps);
          continue;
        }
        grad = replace_number(grads[i], i);
        array = arrays_.view(grad, grads_, stepper_.name(i));
      }
      check_unmoved(i);
      if (stepper_.set_gradient(i, array)) add_possible_overlaps(grad, array, stepper_.name(i), possible_overlaps);
    }
    return possible_overlaps;
  }

  void set_rows(py::handle grad, std::size_t tensor, std::vector<PossibleOverlap>& possible_overlaps) {
    const std::string& name = stepper_.name(tensor);
    const RowArrays given(grad);
    const step::IndexArray indices = arrays_.indices(given.indices, "the indices of " + grads_ + name);
    const Array values = arrays_.view(given.values, "the values of " + grads_, name);
    check_unmoved(tensor);
    if (stepper_.set_rows(tensor, indices, values)) {
      add_possible_overlaps(given.values, values, name, possible_overlaps);
    }
  }

  // A number stands for the gradient of a parameter without axes; an array takes its place. Returns what is there then.
  py::handle replace_number(PyObject*& grad, std::size_t tensor) const {
    if (owned_[first_of_[tensor]].view().rank != 0) return grad;
    if (py::object array = Arrays::number_as_array(grad)) {
      Py_DECREF(grad);
      grad = array.release().ptr();
    }
    return grad;
  }

  void set_bound_gradients() {
    stepper_.begin();
    for (const auto& [tensor, grad] : bound_) {
      if (!frozen_[tensor]) stepper_.set_gradient(tensor, grad.view());
    }
  }

  void add_possible_overlaps(py::handle grad, const Array& array, const std::string& name,
                             std::vector<PossibleOverlap>& possible_overlaps) const {
    for (const Watched& owned : owned_) {
      if (step::surely_apart(array, owned.view())) continue;
      possible_overlaps.emplace_back(arrays_.to_compare(py::reinterpret_borrow<py::object>(grad), array),
                                     arrays_.to_compare(owned.object, owned.view()),
                                     grads_ + name + " overlaps " + label(owned) + ", which the step writes");
    }
  }

  std::string params_, grads_;
  std::map<int, Rule> names_;       // the rules of the groups by number
  std::vector<const Rule*> rules_;  // of each group
  std::vector<std::string> given_names_;
  Arrays arrays_;
  step::Stepper stepper_;
  std::int64_t elements_ = 0;  // of all parameters
  py::object tree_object_;
  py::object exchange_, stepped_;
  std::map<std::string, Unmade, std::less<>> unmade_;  // by the names of states
  const Tree* tree_;                                   // in tree_object_
  std::vector<int> group_of_;                          // of each tensor
  std::vector<char> frozen_;                           // whether each tensor is frozen
  std::string master_kind_, average_kind_;
  const std::string copies_ = "copy_out", count_kind_ = "step number or scalar of ";
  py::str master_name_, average_name_;
  std::vector<Watched> owned_;                              // each tensor's parameter, then its states
  std::vector<typename Arrays::Seal> seals_, bound_seals_;  // of owned_ and of bound_
  std::vector<std::size_t> first_of_{0};                    // where in owned_ each tensor begins, and the last ends
  std::size_t checked_ = 0;                                 // the last array of a spot check
  bool has_tensors_ = false;                                // whether a parameter has a version
  bool is_bound_ = false, is_stepping_ = false;
  bool raises_ = false;             // whether gradients that are not finite raise an error
  std::vector<BoundClock> clocks_;  // of each tensor; empty: none are bound
  std::optional<Tree> bound_tree_, copy_tree_;
  std::vector<std::pair<std::size_t, Watched>> bound_;  // the gradients that bind() was given, with their tensors
};

// The norm of all elements of a tree of arrays together. seen() is called when their device is known.
template <class Arrays, class Seen>
double global_norm(Arrays& arrays, const Tree& tree, const Seen& seen) {
  auto backend = arrays.backend();
  std::vector<step::KeptArray> kept;
  std::vector<step::RowGradient> rows(tree.size());
  std::vector<bool> has_rows(tree.size());
  for (std::size_t i = 0; i < tree.size(); ++i) {
    const py::object& leaf = tree.leaves()[i];
    const std::string name = tree.suffix(i);
    has_rows[i] = is_rows(leaf);
    if (has_rows[i]) {
      const RowArrays given(leaf);
      const step::IndexArray indices = arrays.indices(given.indices, "the indices of " + tree.what() + name);
      kept.emplace_back(arrays.view(given.values, "the values of " + tree.what(), name));
      const Array values = kept.back().view();
      if (values.rank == 0 || values.shape[0] != indices.size) {
        throw std::invalid_argument("the values of " + tree.what() + name + " must have a row for each of " +
                                    std::to_string(indices.size) + " indices");
      }
      rows[i].assign(indices, values);
    } else {
      kept.emplace_back(arrays.view(leaf, tree.what(), name));
    }
  }
  seen();
  double norm = 0;
  without_gil([&] {
    std::vector<Array> views;
    for (std::size_t i = 0; i < kept.size(); ++i) {
      if (has_rows[i]) {
        rows[i].read(std::numeric_limits<std::int64_t>::max(), tree.what() + tree.suffix(i));
        views.push_back(rows[i].sum(compute_of(kept[i].dtype), *backend));
      } else {
        views.push_back(kept[i].view());
      }
    }
    norm = step::global_norm(*backend, views);
    backend.reset();
  });
  return norm;
}

// Adds the class to a module.
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

  register_tree(m);
  py::class_<Steps> stepper(m, "Stepper", py::is_final(), collect_garbage<Steps>());
  stepper
      .def(py::init<const py::object&, const std::string&, const std::string&>(), py::arg("tree") = py::none(),
           py::arg("params") = "params", py::arg("grads") = "grads")
      .def("add_group", &Steps::add_group, py::arg("rule"), py::arg("options"))
      .def("check_options", &Steps::check_options, py::arg("group"), py::arg("options"))
      .def("set_options", &Steps::set_options, py::arg("group"), py::arg("options"))
      .def("set_number", &Steps::set_number, py::arg("group"), py::arg("name"), py::arg("value"))
      .def("set_gradient_pass", &Steps::set_gradient_pass, py::arg("clip_norm"), py::arg("clip_per_tensor"),
           py::arg("on_nonfinite"))
      .def("set_frozen", &Steps::set_frozen, py::arg("group"), py::arg("frozen"))
      .def_property_readonly("is_captured", &Steps::is_captured)
      .def("check_params", &Steps::check_params, py::arg("params"), py::arg("written") = true)
      .def("check_arrays", &Steps::check_arrays)
      .def_property_readonly("grad_norm", &Steps::grad_norm)
      .def("bind", &Steps::bind, py::arg("grads"))
      .def("add_tensors", &Steps::add_tensors, py::arg("groups"), py::arg("params"), py::arg("kept"),
           py::arg("copies") = py::none(), py::arg("names") = std::vector<std::string>())
      .def("set_parts", &Steps::set_parts, py::arg("parts"), py::arg("exchange"),
           py::arg("buckets") = std::vector<std::int64_t>(), py::arg("stepped") = py::none())
      .def("make_states", &Steps::make_states, py::arg("kept"))
      .def("move_tensors", &Steps::move_tensors, py::arg("params"), py::arg("kept"))
      .def("bind_clocks", &Steps::bind_clocks, py::arg("steps"), py::arg("scalars"))
      .def("possible_overlaps", &Steps::possible_overlaps)
      .def("step", &Steps::step, py::arg("grads"), py::arg("grad_scale") = 1.0, py::arg("clears") = false,
           py::arg("stats") = false)
      .def("run", &Steps::run_prepared, py::arg("prepared"), py::arg("grad_scale") = 1.0, py::arg("stats") = false)
      .def_property_readonly("result", &Steps::result)
      .def_property_readonly("is_stepping", &Steps::is_stepping)
      .def_property_readonly("step_count", &Steps::step_count)
      .def_property_readonly("clocks", &Steps::clocks)
      .def("set_times", &Steps::set_times, py::arg("step_count"), py::arg("clocks"));
  return stepper;
}

}  // namespace gradstep::bind
