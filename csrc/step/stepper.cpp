#include "step/stepper.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "cpu/isa.h"
#include "step/run.h"

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
  t.like_param = lay_out(t, param);

  Slot slot;
  slot.size = std::accumulate(t.param.shape.begin(), t.param.shape.end(), std::int64_t{1}, std::multiplies<>());
  slot.shape = t.param.shape.data();
  slot.strides = t.param.strides.data();
  slot.group = group;
  slot.rank = static_cast<std::int8_t>(param.rank);
  slot.packed = t.like_param.packed();
  slot.dtype = param.dtype;
  cpu::Job job;
  std::byte* const data[] = {param.data, nullptr, t.states[0].data, t.states[1].data, t.states[2].data};
  std::copy(std::begin(data), std::end(data), job.streams);

  tensors_.push_back(std::move(t));
  slots_.push_back(slot);
  jobs_.push_back(job);
  plan_ = {};
}

cpu::Layout Stepper::lay_out(const Tensor& t, const Array& grad) {
  Array kept[] = {t.param.view(), grad, t.states[0].view(), t.states[1].view(), t.states[2].view()};
  const Array* streams[cpu::kMaxStreams];
  for (int s = 0; s < cpu::kMaxStreams; ++s) streams[s] = kept[s].data == nullptr ? nullptr : &kept[s];
  return make_layout(streams);
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
    extents.push_back(extent(tensors_[i].param.view()));
    for (const KeptArray& state : tensors_[i].states) {
      if (state.data != nullptr) extents.push_back(extent(state.view()));
    }
  }
  owned_ = Ranges(std::move(extents));
  for (Slot& slot : slots_) slot.free = {0, 0};
  plan_ = make_plan(sizes.data(), sizes.size(), grain(std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0})));
}

void Stepper::refuse_gradient(std::size_t tensor, const Array& grad) const {
  const Tensor& t = tensors_[tensor];
  const Array param = t.param.view();
  if (param.rank != grad.rank || !same(param.shape, grad.shape, grad.rank)) {
    throw std::invalid_argument(grads_ + t.name + " has shape " + tuple(grad.shape, grad.rank) +
                                ", but its parameter has shape " + tuple(param.shape, param.rank));
  }
  throw WrongType(grads_ + t.name + " is " + dtype_name(grad.dtype) + ", but its parameter is " +
                  dtype_name(param.dtype));
}

bool Stepper::set_gradient(std::size_t tensor, const Array& grad) {
  Slot& slot = slots_[tensor];
  cpu::Job& job = jobs_[tensor];
  if (grad.rank != slot.rank || !same(slot.shape, grad.shape, grad.rank) || grad.dtype != slot.dtype) {
    refuse_gradient(tensor, grad);
  }
  const cpu::Layout* layout = nullptr;
  if (!same(slot.strides, grad.strides, grad.rank) || !aligned(grad)) {
    cpu::Layout& unlike_param = tensors_[tensor].unlike_param;
    unlike_param = lay_out(tensors_[tensor], grad);
    if (!unlike_param.packed()) layout = &unlike_param;
  } else if (!slot.packed) {
    layout = &tensors_[tensor].like_param;
  }
  put(job.strided, layout);
  put(job.streams[cpu::kGradient], grad.data);
  slot.active = true;

  const Extent bytes = extent(grad);
  if (bytes.begin < slot.free.begin || bytes.end > slot.free.end) slot.free = owned_.gap_around(bytes);
  return slot.free.end == 0;
}

// Tensors of a group nearly always share their scalars, so it looks back a little.
const Stepper::Prepared& Stepper::prepare(const Slot& slot) {
  constexpr std::size_t kLookBack = 4;
  const rules::Clock& now = slot.clock;
  for (std::size_t i = prepared_.size(); i-- > 0 && i + kLookBack >= prepared_.size();) {
    const Prepared& p = prepared_[i];
    if (p.group == slot.group && p.dtype == slot.dtype && p.before.t == now.t &&
        p.before.mu_product == now.mu_product) {
      return p;
    }
  }
  const std::vector<double>& options = groups_[static_cast<std::size_t>(slot.group)];
  const rules::Key key = key_of(rule_, options, info(slot.dtype).compute);
  Prepared p{slot.group, slot.dtype, now, {now.t + 1, now.mu_product}, {}, {}};
  step::prepare(key, options, p.after, p.scalars);
  prepared_.push_back(p);
  Prepared& kept = prepared_.back();
  kept.update = {cpu::find_kernel(key), kept.scalars.bytes, flushes(options) ? cpu::find_flush(key.compute) : nullptr,
                 key.compute};
  return kept;
}

void Stepper::run() noexcept {
  prepared_.clear();
  std::int64_t elements = 0;
  for (std::size_t i = 0; i < slots_.size(); ++i) {
    Slot& slot = slots_[i];
    const Prepared* const p = slot.active ? &prepare(slot) : nullptr;
    put<const cpu::Update*>(jobs_[i].update, p == nullptr ? nullptr : &p->update);
    if (p == nullptr) continue;
    slot.clock = p->after;
    elements += slot.size;
  }
  run_jobs(plan_, jobs_.data(), elements);
}

}  // namespace gradstep::step
