#include "step/stepper.h"

#include <algorithm>
#include <functional>
#include <numeric>

namespace gradstep::step {
namespace {

// Writes what is new alone: the workers have these cache lines too, and need not fetch again what nobody changed.
template <class T>
void put(T& kept, T value) {
  if (kept != value) kept = value;
}

bool aligned(const Array& array) {
  return reinterpret_cast<std::uintptr_t>(array.data) % static_cast<std::uintptr_t>(item_size(array.dtype)) == 0;
}

Extent extent_of_scales(const Array& array, std::int64_t elements) {
  const auto first = reinterpret_cast<std::uintptr_t>(array.scales);
  return {first, first + static_cast<std::uintptr_t>(blocks_of(elements)) * sizeof(float)};
}

bool same(const rules::Clock& a, const rules::Clock& b) {
  return a.t == b.t && std::equal(std::begin(a.scalars), std::end(a.scalars), std::begin(b.scalars));
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
  rules::Key before = key_of(rule_, groups_[static_cast<std::size_t>(group)], {});
  const rules::Key after = key_of(rule_, options, {});
  const auto& states = catalog()[static_cast<std::size_t>(rule_)].states;
  for (std::size_t s = 0; s < states.size(); ++s) {
    if (keeps(before, s) != keeps(after, s)) {
      throw std::invalid_argument(
          "options that add or drop a state cannot change after the optimizer was made, "
          "and these would with " +
          std::string(states[s].name));
    }
  }
  before.flush = after.flush;  // one kernel serves both on a device
  if (backend_->holds() && !(before == after)) {
    throw std::invalid_argument(
        "a step was captured, and these options take another kernel than its; capture again with an optimizer of their "
        "own");
  }
  // Layouts are made for one or the other: where rounding depends on an element's place, the walk is in order.
  if (rounds_stochastically(groups_[static_cast<std::size_t>(group)]) != rounds_stochastically(options)) {
    throw std::invalid_argument("stochastic_rounding may get another seed, but not be turned on or off");
  }
}

void Stepper::set_options(int group, std::vector<double> options) {
  check_options(group, options);
  if (backend_->holds()) backend_->set_options(group, options);
  groups_[static_cast<std::size_t>(group)] = std::move(options);
}

void Stepper::set_lr(int group, double lr) {
  const auto& names = catalog()[static_cast<std::size_t>(rule_)].options;
  const auto place = std::find(names.begin(), names.end(), "lr") - names.begin();
  std::vector<double>& options = groups_[static_cast<std::size_t>(group)];
  options[static_cast<std::size_t>(place)] = lr;
  if (backend_->holds()) backend_->set_options(group, options);
}

void Stepper::set_clip_norm(double limit) {
  const bool clipping = limit == limit;
  if (backend_->holds() && clips() != clipping) {
    throw std::invalid_argument(
        "a step was captured, and it cannot begin or end to clip; capture again with an optimizer of its own");
  }
  for (std::size_t i = 0; clipping && !clips() && i < tensors_.size(); ++i) {
    gradients_.lay_out(*backend_, i, tensors_[i].streams[kGradient].view());
  }
  backend_->set_limit(limit);
  limit_ = limit;
}

std::optional<double> Stepper::grad_norm() {
  return clips() && has_norm_ ? std::optional(backend_->norm()) : std::nullopt;
}

void Stepper::add_tensor(int group, std::string name, const Array& param, const std::vector<Array>& states,
                         const Array& master) {
  Tensor t;
  t.name = std::move(name);
  t.streams[kParameter] = KeptArray(master.data == nullptr ? param : master);
  if (master.data != nullptr) t.streams[kCopy] = KeptArray(param);
  for (std::size_t s = 0; s < states.size(); ++s) t.streams[kFirstState + s] = KeptArray(states[s]);
  const rules::Key key = key_of(rule_, groups_[static_cast<std::size_t>(group)], compute_of(param.dtype));
  const auto& about = catalog()[static_cast<std::size_t>(rule_)].states;
  for (std::size_t s = 0; s < about.size(); ++s) {
    if (keeps(key, s) != (t.streams[kFirstState + s].data != nullptr)) {
      throw std::invalid_argument("state " + std::string(about[s].name) + " of " + params_ + t.name +
                                  (keeps(key, s) ? " is missing" : " is given, but these options do not keep it"));
    }
  }

  Slot slot;
  slot.clock = catalog()[static_cast<std::size_t>(rule_)].first_clock();
  slot.size = std::accumulate(param.shape, param.shape + param.rank, std::int64_t{1}, std::multiplies<>());
  slot.rank = static_cast<std::int8_t>(param.rank);
  slot.group = group;
  Job job;
  for (int s = 0; s < kMaxStreams; ++s) job.streams[s] = t.streams[s].data;

  tensors_.push_back(std::move(t));
  slots_.push_back(slot);
  jobs_.push_back(job);
  lay_out(tensors_.size() - 1, param);  // most gradients lie as their parameter does
  plan_ = {};
}

void Stepper::lay_out(std::size_t tensor, const Array& grad) {
  Tensor& t = tensors_[tensor];
  Slot& slot = slots_[tensor];
  t.streams[kGradient] = KeptArray(grad);
  const bool stochastic = rounds_stochastically(groups_[static_cast<std::size_t>(slot.group)]);
  Array arrays[kMaxStreams];
  const Array* streams[kMaxStreams];
  bool in_order = false;
  for (int s = 0; s < kMaxStreams; ++s) {
    arrays[s] = t.streams[s].view();
    streams[s] = arrays[s].data == nullptr ? nullptr : &arrays[s];
    in_order = in_order || (kStreams[s].rounded && is_stochastic(arrays[s].dtype, stochastic));
  }
  t.layout = make_layout(streams, in_order);
  t.layout.tensor = static_cast<std::uint32_t>(tensor);
  slot.shape = t.streams[kGradient].shape.data();
  slot.strides = t.streams[kGradient].strides.data();
  slot.dtype = grad.dtype;
  slot.aligned = aligned(grad);
  put<const Layout*>(jobs_[tensor].layout, t.layout.plain() ? nullptr : &t.layout);
  backend_->lay_out(tensor, jobs_[tensor], t.layout);
  if (clips()) gradients_.lay_out(*backend_, tensor, grad);
}

void Stepper::begin() {
  if (plan_.tasks.empty()) finish_plan();
  for (Slot& slot : slots_) slot.active = false;
}

void Stepper::finish_plan() {
  prepared_.reserve(tensors_.size());  // run() must not fail, and jobs point into it
  std::vector<std::int64_t> sizes;
  std::vector<Extent> extents;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    sizes.push_back(slots_[i].size);
    for (int s = 0; s < kMaxStreams; ++s) {
      const KeptArray& stream = tensors_[i].streams[s];
      if (!kStreams[s].written || stream.data == nullptr) continue;
      extents.push_back(extent(stream.view()));
      if (stream.scales != nullptr) extents.push_back(extent_of_scales(stream.view(), slots_[i].size));
    }
    if (jobs_[i].layout != nullptr) jobs_[i].layout = &tensors_[i].layout;  // tensors have moved
  }
  owned_ = Ranges(std::move(extents));
  for (Slot& slot : slots_) slot.free = {0, 0};
  const std::int64_t grain = backend_->grain(std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0}));
  plan_ = make_plan(sizes.data(), sizes.size(), grain);
  backend_->take(plan_);
}

void Stepper::refuse_gradient(std::size_t tensor, const Array& grad) const {
  const Tensor& t = tensors_[tensor];
  const Array param = t.param().view();
  if (param.rank != grad.rank || !same(param.shape, grad.shape, grad.rank)) {
    throw std::invalid_argument(grads_ + t.name + " has shape " + tuple(grad.shape, grad.rank) +
                                ", but its parameter has shape " + tuple(param.shape, param.rank));
  }
  throw WrongType(grads_ + t.name + " is " + dtype_name(grad.dtype) + ", but its parameter is " +
                  dtype_name(param.dtype));
}

bool Stepper::set_gradient(std::size_t tensor, const Array& grad) {
  Slot& slot = slots_[tensor];
  if (grad.rank != slot.rank || !same(slot.shape, grad.shape, grad.rank)) refuse_gradient(tensor, grad);
  if (grad.dtype != slot.dtype || !same(slot.strides, grad.strides, grad.rank) || !aligned(grad) || !slot.aligned) {
    if (compute_of(grad.dtype) != compute_of(slot.dtype)) refuse_gradient(tensor, grad);
    lay_out(tensor, grad);
  }
  put(jobs_[tensor].streams[kGradient], grad.data);
  slot.active = true;

  const Extent bytes = extent(grad);
  if (bytes.begin < slot.free.begin || bytes.end > slot.free.end) slot.free = owned_.gap_around(bytes);
  return slot.free.end == 0;
}

// Tensors of a group nearly always share their scalars, so it looks back a little.
const Stepper::Prepared& Stepper::prepare(const Slot& slot) {
  constexpr std::size_t kLookBack = 4;
  const rules::Clock& now = slot.clock;
  const Compute compute = compute_of(slot.dtype);
  for (std::size_t i = prepared_.size(); i-- > 0 && i + kLookBack >= prepared_.size();) {
    const Prepared& p = prepared_[i];
    if (p.group == slot.group && p.key.compute == compute && same(p.before, now)) {
      return p;
    }
  }
  const std::vector<double>& options = groups_[static_cast<std::size_t>(slot.group)];
  rules::Clock after = now;
  ++after.t;
  Update update = make_update(key_of(rule_, options, compute), options, after);
  prepared_.push_back({update, slot.group, bytes_moved(update.key), now, after});
  return prepared_.back();
}

Times Stepper::times() {
  Times now{taken_, {}, {}, groups_};
  for (const Slot& slot : slots_) {
    now.clocks.push_back(slot.clock);
    now.groups.push_back(static_cast<std::uint32_t>(slot.group));
  }
  if (backend_->holds()) backend_->read(now);
  return now;
}

void Stepper::set_times(std::int64_t taken, const std::vector<rules::Clock>& clocks) {
  if (clocks.size() != slots_.size()) throw std::invalid_argument("one clock a tensor is needed");
  Times now = times();
  now.taken = taken_ = taken;
  now.clocks = clocks;
  for (std::size_t i = 0; i < slots_.size(); ++i) slots_[i].clock = clocks[i];
  has_norm_ = false;
  if (backend_->holds()) backend_->hold(now);
}

void Stepper::run() {
  if (!backend_->holds() && backend_->must_hold()) backend_->hold(times());
  const bool held = backend_->holds();
  prepared_.clear();
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    Slot& slot = slots_[i];
    const Prepared* const p = slot.active ? &prepare(slot) : nullptr;
    put<const Update*>(jobs_[i].update, p);
    if (p == nullptr) continue;
    if (!held) slot.clock = p->after;
    bytes += slot.size * p->bytes;
  }
  try {
    has_norm_ = false;
    if (clips()) clip();
    backend_->run(plan_, jobs_.data(), bytes);
  } catch (...) {
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      if (slots_[i].active) slots_[i].clock = static_cast<const Prepared*>(jobs_[i].update)->before;
    }
    throw;
  }
  has_norm_ = clips();
  if (!held) ++taken_;
}

void Stepper::clip() {
  std::int64_t bytes = 0;
  for (std::size_t i = 0; i < jobs_.size(); ++i) {
    if (jobs_[i].update != nullptr) bytes += slots_[i].size * size_of(jobs_[i].update->key.compute);
    put(gradients_.jobs[i].update, jobs_[i].update);
    put(gradients_.jobs[i].streams[kGradient], jobs_[i].streams[kGradient]);
  }
  const double factor = backend_->clip(plan_, gradients_.jobs.data(), bytes);
  if (factor == 1) return;
  for (Prepared& p : prepared_) rescale(p, factor);
}

}  // namespace gradstep::step
