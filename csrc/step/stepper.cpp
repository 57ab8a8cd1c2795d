#include "step/stepper.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "cpu/ieee_mode.h"
#include "cpu/isa.h"
#include "cpu/pool.h"
#include "cpu/threads.h"

namespace gradstep::step {
namespace {

// Elements a task holds: enough to make claiming it free, few enough that threads end together.
constexpr std::int64_t kGrain = 16384;

// Below this a step is over before a sleeping worker wakes.
constexpr std::int64_t kWorthSharing = 2 * kGrain;

bool aligned(const Array& array) {
  return reinterpret_cast<std::uintptr_t>(array.data) % static_cast<std::uintptr_t>(item_size(array.dtype)) == 0;
}

std::string tuple(const std::int64_t* shape, int rank) {
  std::string text = "(";
  for (int axis = 0; axis < rank; ++axis) text += (axis == 0 ? "" : ", ") + std::to_string(shape[axis]);
  return text + (rank == 1 ? ",)" : ")");
}

}  // namespace

int Stepper::add_group(std::vector<double> options) {
  groups_.push_back(std::move(options));
  return static_cast<int>(groups_.size()) - 1;
}

void Stepper::check_options(int group, const std::vector<double>& options) const {
  const rules::Key before = key_of(rule_, groups_[static_cast<std::size_t>(group)], {});
  const rules::Key after = key_of(rule_, options, {});
  const auto& states = catalog()[static_cast<std::size_t>(rule_)].states;
  for (std::size_t s = 0; s < states.size(); ++s) {
    if (keeps(before, s) != keeps(after, s)) {
      throw std::invalid_argument(
          "options that add or drop a state cannot change after the optimizer was made, "
          "and these would with " +
          states[s]);
    }
  }
}

void Stepper::set_options(int group, std::vector<double> options) {
  check_options(group, options);
  groups_[static_cast<std::size_t>(group)] = std::move(options);
}

void Stepper::set_lr(int group, double lr) {
  const auto& names = catalog()[static_cast<std::size_t>(rule_)].options;
  const auto place = std::find(names.begin(), names.end(), "lr") - names.begin();
  groups_[static_cast<std::size_t>(group)][static_cast<std::size_t>(place)] = lr;
}

void Stepper::add_tensor(int group, std::string name, const Array& param, const std::vector<Array>& states) {
  Tensor t;
  t.group = group;
  t.name = std::move(name);
  t.param = KeptArray(param);
  for (std::size_t s = 0; s < states.size(); ++s) t.states[s] = KeptArray(states[s]);
  const rules::Key key = key_of(rule_, groups_[static_cast<std::size_t>(group)], info(param.dtype).compute);
  const auto& names = catalog()[static_cast<std::size_t>(rule_)].states;
  for (std::size_t s = 0; s < names.size(); ++s) {
    if (keeps(key, s) != (t.states[s].data != nullptr)) {
      throw std::invalid_argument("state " + names[s] + " of " + params_ + t.name +
                                  (keeps(key, s) ? " is missing" : " is given, but these options do not keep it"));
    }
  }
  t.size = std::accumulate(t.param.shape.begin(), t.param.shape.end(), std::int64_t{1}, std::multiplies<>());
  t.like_param = lay_out(t, param);
  tensors_.push_back(std::move(t));
  plan_ = {};
}

Layout Stepper::lay_out(const Tensor& t, const Array& grad) {
  Array kept[] = {t.param.view(), grad, t.states[0].view(), t.states[1].view(), t.states[2].view()};
  const Array* streams[cpu::kMaxStreams];
  for (int s = 0; s < cpu::kMaxStreams; ++s) streams[s] = kept[s].data == nullptr ? nullptr : &kept[s];
  return make_layout(streams);
}

void Stepper::begin() {
  prepared_.clear();
  prepared_.reserve(tensors_.size());  // run() must not fail, and jobs point into it
  for (Tensor& t : tensors_) t.active = false;
  if (plan_.tasks.empty()) finish_plan();
}

void Stepper::finish_plan() {
  std::vector<std::int64_t> sizes;
  std::vector<Extent> extents;
  for (const Tensor& t : tensors_) {
    sizes.push_back(t.size);
    extents.push_back(extent(t.param.view()));
    for (const KeptArray& state : t.states) {
      if (state.data != nullptr) extents.push_back(extent(state.view()));
    }
  }
  owned_ = Ranges(std::move(extents));
  plan_ = make_plan(sizes.data(), sizes.size(), kGrain);
}

void Stepper::set_gradient(std::size_t tensor, const Array& grad) {
  Tensor& t = tensors_[tensor];
  const Array param = t.param.view();
  if (!same(t.param.shape, grad.shape, grad.rank)) {
    throw std::invalid_argument(grads_ + t.name + " has shape " + tuple(grad.shape, grad.rank) +
                                ", but its parameter has shape " + tuple(param.shape, param.rank));
  }
  if (grad.dtype != param.dtype) {
    throw WrongType(grads_ + t.name + " is " + dtype_name(grad.dtype) + ", but its parameter is " +
                    dtype_name(param.dtype));
  }

  const bool alike = same(t.param.strides, grad.strides, grad.rank) && aligned(grad);
  if (!alike) t.unlike_param = lay_out(t, grad);
  const Layout& layout = alike ? t.like_param : t.unlike_param;

  std::byte* const data[] = {param.data, grad.data, t.states[0].data, t.states[1].data, t.states[2].data};
  t.job.dtype = param.dtype;
  t.job.rank = static_cast<int>(layout.shape.size());
  t.job.shape = layout.shape.data();
  t.job.packed = true;
  for (int s = 0; s < cpu::kMaxStreams; ++s) {
    const bool strided = !layout.strides[s].empty();
    t.job.streams[s] = {data[s], strided ? layout.strides[s].data() : nullptr};
    t.job.packed = t.job.packed && !strided;
  }
  t.active = true;
}

// Returns the place in prepared_ of this tensor's scalars. Tensors of a group nearly always share them, so it looks
// back a little.
std::size_t Stepper::prepare(const Tensor& t) {
  constexpr std::size_t kLookBack = 4;
  const rules::Clock& now = t.clock;
  for (std::size_t i = prepared_.size(); i-- > 0 && i + kLookBack >= prepared_.size();) {
    const Prepared& p = prepared_[i];
    if (p.group == t.group && p.dtype == t.param.dtype && p.before.t == now.t &&
        p.before.mu_product == now.mu_product) {
      return i;
    }
  }
  const std::vector<double>& options = groups_[static_cast<std::size_t>(t.group)];
  const rules::Key key = key_of(rule_, options, info(t.param.dtype).compute);
  Prepared p{t.group, t.param.dtype, now, {now.t + 1, now.mu_product}, cpu::find_kernel(key), {}};
  step::prepare(key, options, p.after, p.scalars);
  prepared_.push_back(p);
  return prepared_.size() - 1;
}

void Stepper::run() noexcept {
  std::int64_t elements = 0;
  for (Tensor& t : tensors_) {
    if (!t.active) continue;
    const Prepared& p = prepared_[prepare(t)];
    t.job.kernel = p.kernel;
    t.job.element = p.scalars.bytes;
    t.clock = p.after;
    elements += t.size;
  }

  const auto task = [](void* self, std::size_t index) {
    const cpu::IeeeMode ieee;
    const auto& [pieces, tasks] = static_cast<Stepper*>(self)->plan_;
    for (std::size_t i = tasks[index]; i < tasks[index + 1]; ++i) {
      const Tensor& t = static_cast<Stepper*>(self)->tensors_[pieces[i].tensor];
      if (t.active) cpu::update(t.job, pieces[i].begin, pieces[i].end);
    }
  };
  cpu::parallel_for(plan_.task_count(), elements < kWorthSharing ? 1 : cpu::threads(), task, this);
}

}  // namespace gradstep::step
