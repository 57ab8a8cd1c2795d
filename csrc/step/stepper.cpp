#include "step/stepper.h"

#include <algorithm>

#include "cpu/fork.h"

namespace gradstep::step {
namespace {

bool aligned(const Array& array, std::uint8_t misaligned) {
  return (reinterpret_cast<std::uintptr_t>(array.data) & misaligned) == 0;
}

Extent extent_of_scales(const Array& array, std::int64_t elements) {
  const auto first = reinterpret_cast<std::uintptr_t>(array.scales);
  return {first, first + static_cast<std::uintptr_t>(blocks_of(elements)) * sizeof(float)};
}

std::string tuple(const std::int64_t* shape, int rank) {
  std::string text = "(";
  for (int axis = 0; axis < rank; ++axis) text += (axis == 0 ? "" : ", ") + std::to_string(shape[axis]);
  return text + (rank == 1 ? ",)" : ")");
}

}  // namespace

int Stepper::add_group(int rule, std::vector<double> options) {
  groups_.push_back(group_options(rule, std::move(options)));
  backend_->set_options(groups_.size() - 1, groups_.back());
  return static_cast<int>(groups_.size()) - 1;
}

void Stepper::check_group(int group) const {
  if (static_cast<std::size_t>(group) >= groups_.size()) {
    throw std::invalid_argument("there is no group " + std::to_string(group));
  }
}

void Stepper::check_options(int group, const std::vector<double>& options) const {
  check_group(group);
  const GroupOptions& of = groups_[static_cast<std::size_t>(group)];
  const std::vector<double>& now = of.values;
  rules::Key before = of.key(Compute::kFloat);
  const rules::Key after = key_of(of.rule, options, Compute::kFloat);
  const auto& states = info(of).states;
  for (std::size_t s = 0; s < states.size(); ++s) {
    if (keeps(before, s) != keeps(after, s)) {
      throw std::invalid_argument(
          "options that determine which states are kept cannot change after construction; these would change "
          "whether " +
          std::string(states[s].name) + " is kept");
    }
  }
  before.bounds = after.bounds;  // one kernel serves both on a device
  if (backend_->is_captured() && !(before == after)) {
    throw std::invalid_argument(
        "these options need another kernel than the captured step; create a new optimizer and capture its step");
  }
  // Layouts depend on this: with stochastic rounding, elements are traversed in index order.
  if (rounds_stochastically(now) != rounds_stochastically(options)) {
    throw std::invalid_argument(
        "stochastic_rounding cannot be turned on or off after construction; only its seed can change");
  }
  if (averages(now) != averages(options)) {
    throw std::invalid_argument("ema cannot be turned on or off after construction; only its decay can change");
  }
}

void Stepper::set_options(int group, std::vector<double> options) {
  check_options(group, options);
  GroupOptions changed = group_options(groups_[static_cast<std::size_t>(group)].rule, std::move(options));
  backend_->set_options(static_cast<std::size_t>(group), changed);
  groups_[static_cast<std::size_t>(group)] = std::move(changed);
}

void Stepper::set_number(int group, const std::string& name, double value) {
  check_group(group);
  const GroupOptions& options = groups_[static_cast<std::size_t>(group)];
  const auto& names = info(options).options;
  const auto place = std::find(names.begin(), names.end(), name) - names.begin();
  std::vector<double> values = options.values;
  values.at(static_cast<std::size_t>(place)) = value;
  set_options(group, std::move(values));
}

void Stepper::set_gradient_pass(const PassOptions& asked) {
  if (backend_->is_captured() && asked.clipping != asked_.clipping) {
    throw std::invalid_argument(
        "clipping cannot be turned on or off after a step was captured; create a new optimizer and capture its step");
  }
  if (backend_->is_captured() && asked.skips_nonfinite != asked_.skips_nonfinite) {
    throw std::invalid_argument(
        "skipping cannot be turned on or off after a step was captured; create a new optimizer and capture its step");
  }
  const bool begins = asked.asks() && !asked_.asks();
  backend_->set_gradient_pass(asked);
  has_pass_ = has_pass_ && asked.asks();
  asked_ = asked;
  for (std::size_t i = 0; begins && i < tensors_.size(); ++i) {
    set_layout(i, tensors_[i].view(kGradient));
  }
}

std::optional<GradientPass> Stepper::gradient_pass() {
  return has_pass_ ? std::optional(backend_->gradient_pass()) : std::nullopt;
}

void Stepper::set_streams(Tensor& t, const Array& param, const std::vector<Array>& states, const Beside& beside) const {
  t.has_master = beside.master.data != nullptr;
  const Array& copy = t.has_master ? param : beside.copy;
  t.set_shape(param);
  t.set(kParameter, t.has_master ? beside.master : param);
  if (copy.data != nullptr) t.set(kCopy, copy);
  if (beside.average.data != nullptr) t.set(kAverage, beside.average);
  for (std::size_t s = 0; s < states.size(); ++s) {
    if (states[s].data != nullptr) t.set(kFirstState + static_cast<int>(s), states[s]);
  }
  const GroupOptions& options = groups_[static_cast<std::size_t>(t.group)];
  const rules::Key key = options.key(t.compute());
  const auto& about = info(options).states;
  for (std::size_t s = 0; s < about.size(); ++s) {
    if (keeps(key, s) != (t.streams[kFirstState + s].data != nullptr)) {
      throw std::invalid_argument("state " + std::string(about[s].name) + " of " + params_ + t.name +
                                  (keeps(key, s) ? " is missing" : " is given, but these options do not keep it"));
    }
  }
  if (averages(options.values) != (beside.average.data != nullptr)) {
    throw std::invalid_argument("the average of " + params_ + t.name + " must be given where ema is, and only there");
  }
}

void Stepper::add_tensor(int group, std::string name, const Array& param, const std::vector<Array>& states,
                         const Beside& beside) {
  check_group(group);
  Tensor t;
  t.name = std::move(name);
  t.group = group;
  set_streams(t, param, states, beside);
  backend_->add_tensor({size_of(param), group, t.compute()},
                       info(groups_[static_cast<std::size_t>(group)]).first_clock());
  Slot slot;
  slot.rank = static_cast<std::int8_t>(param.rank);
  tensors_.push_back(std::move(t));
  slots_.push_back(slot);
  gradients_.push_back(nullptr);
  set_layout(tensors_.size() - 1, param);  // most gradients have their parameter's layout
  owned_is_known_ = false;
}

void Stepper::move_tensor(std::size_t tensor, const Array& param, const std::vector<Array>& states,
                          const Beside& beside) {
  const Tensor& t = tensors_[tensor];
  const Array was = t.param();
  if (was.dtype != param.dtype || was.rank != param.rank || !same(was.shape, param.shape, param.rank)) {
    throw std::invalid_argument(params_ + t.name + " has another shape or type than before");
  }
  Tensor moved;
  moved.name = t.name;
  moved.group = t.group;
  set_streams(moved, param, states, beside);
  tensors_[tensor] = std::move(moved);
  set_layout(tensor, param);
  owned_is_known_ = false;
}

void Stepper::set_layout(std::size_t tensor, const Array& grad) {
  Tensor& t = tensors_[tensor];
  Slot& slot = slots_[tensor];
  t.set(kGradient, grad);
  slot.shape = t.view(kGradient).shape;
  slot.strides = t.view(kGradient).strides;
  slot.dtype = grad.dtype;
  slot.misaligned = static_cast<std::uint8_t>(item_size(grad.dtype) - 1);
  slot.aligned = aligned(grad, slot.misaligned);
  slot.data = nullptr;
  slot.of_rows = false;
  set_layout(tensor, grad, nullptr);
}

void Stepper::set_layout(std::size_t tensor, const Array& grad, const RowGradient* rows) {
  Tensor& t = tensors_[tensor];
  const bool stochastic = rounds_stochastically(groups_[static_cast<std::size_t>(t.group)].values);
  Array arrays[kMaxStreams];
  const Array* streams[kMaxStreams];
  std::byte* places[kMaxStreams];
  bool in_order = in_order_;
  for (int s = 0; s < kMaxStreams; ++s) {
    arrays[s] = s == kGradient ? grad : t.view(s);
    streams[s] = arrays[s].data == nullptr ? nullptr : &arrays[s];
    places[s] = arrays[s].data;
    in_order = in_order || (kStreams[s].rounded && is_stochastic(arrays[s].dtype, stochastic));
  }
  Layout layout = rows == nullptr ? make_layout(streams, t.compute(), in_order)
                                  : make_layout(streams, t.compute(), in_order, rows->rows(), rows->count());
  layout.tensor = static_cast<std::uint32_t>(tensor);
  if (!parts_.empty()) layout.first = parts_[tensor].first;
  backend_->set_layout(tensor, places, std::move(layout), asked_.asks() ? norm_layout(grad, t.compute()) : Layout{},
                       size_of(grad));
}

void Stepper::set_parts(std::vector<Part> parts, Exchange exchange, const std::vector<std::int64_t>& buckets,
                        Stepped stepped) {
  if (parts.size() != tensors_.size()) throw std::invalid_argument("each tensor must be a part");
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const auto [first, whole] = parts[i];
    const std::int64_t size = size_of(tensors_[i].param());
    if (first < 0 || first % kPart != 0 || size > whole - first) {
      throw std::invalid_argument(params_ + tensors_[i].name + " must begin at a multiple of " + std::to_string(kPart) +
                                  " within its whole");
    }
  }
  check_buckets(buckets);
  backend_->set_parts(parts, buckets);
  parts_ = std::move(parts);
  exchange_ = std::move(exchange);
  stepped_ = std::move(stepped);
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    set_layout(i, tensors_[i].view(kGradient));
  }
}

void Stepper::check_buckets(const std::vector<std::int64_t>& buckets) const {
  if (buckets.empty()) return;
  auto bucket = buckets.begin();
  std::int64_t left = 0;  // in the bucket
  bool good = *std::min_element(buckets.begin(), buckets.end()) >= 0;
  for (std::size_t i = 0; good && i < tensors_.size(); ++i) {
    const std::int64_t size = size_of(tensors_[i].param());
    for (std::int64_t begin = 0; good && begin < size;) {
      while (left == 0 && bucket != buckets.end()) left = *bucket++;
      const std::int64_t take = std::min(left, size - begin);
      begin += take;
      left -= take;
      good = take > 0 && (begin == size || begin % kChunk == 0);
    }
  }
  good = good && left == 0 && std::all_of(bucket, buckets.end(), [](std::int64_t size) { return size == 0; });
  if (good) return;
  throw std::invalid_argument("buckets must have all elements, and end at multiples of " + std::to_string(kChunk) +
                              " or at the end of a tensor");
}

void Stepper::reserve(std::size_t tensors) {
  tensors_.reserve(tensors_.size() + tensors);
  slots_.reserve(slots_.size() + tensors);
  gradients_.reserve(gradients_.size() + tensors);
  backend_->reserve(tensors_.size() + tensors);
}

void Stepper::begin() {
  if (!owned_is_known_) find_owned();
  std::fill(gradients_.begin(), gradients_.end(), nullptr);
  with_rows_.clear();
}

void Stepper::find_owned() {
  std::vector<Extent> extents;
  for (const Tensor& t : tensors_) {
    for (int s = 0; s < kMaxStreams; ++s) {
      const Array array = t.view(s);
      if (!kStreams[s].written || array.data == nullptr) continue;
      extents.push_back(extent(array));
      if (array.scales != nullptr) extents.push_back(extent_of_scales(array, size_of(array)));
    }
  }
  owned_ = Ranges(std::move(extents));
  for (Slot& slot : slots_) slot.free = {0, 0}, slot.data = nullptr;
  owned_is_known_ = true;
}

void Stepper::refuse_shape(std::size_t tensor, const Array& grad) const {
  const Tensor& t = tensors_[tensor];
  const Array param = t.param();
  throw std::invalid_argument(grads_ + t.name + " has shape " + tuple(grad.shape, grad.rank) +
                              ", but its parameter has shape " + tuple(param.shape, param.rank));
}

bool Stepper::place_gradient(std::size_t tensor, const Array& grad) {
  Slot& slot = slots_[tensor];
  if (grad.rank != slot.rank || !same(slot.shape, grad.shape, grad.rank)) refuse_shape(tensor, grad);
  if (slot.of_rows || !slot.is_like(grad) || !slot.aligned || !aligned(grad, slot.misaligned)) set_layout(tensor, grad);
  const Extent bytes = extent(grad);
  if (bytes.begin < slot.free.begin || bytes.end > slot.free.end) slot.free = owned_.gap_around(bytes);
  const bool apart = slot.free.end != 0;
  slot.data = apart ? grad.data : nullptr;
  return !apart;
}

bool Stepper::set_rows(std::size_t tensor, const IndexArray& indices, const Array& values) {
  Tensor& t = tensors_[tensor];
  const Array param = t.param();
  const std::string name = grads_ + t.name;
  if (param.rank == 0) throw std::invalid_argument(name + " has rows, but its parameter has no axes");
  if (values.rank != param.rank || values.shape[0] != indices.size ||
      !same(values.shape + 1, param.shape + 1, param.rank - 1)) {
    std::vector<std::int64_t> wanted(param.shape, param.shape + param.rank);
    wanted[0] = indices.size;
    throw std::invalid_argument("the values of " + name + " have shape " + tuple(values.shape, values.rank) +
                                ", but must have shape " + tuple(wanted.data(), param.rank) +
                                ", a row of its parameter for each index");
  }
  std::int64_t length = 1;
  for (int axis = 1; axis < param.rank; ++axis) length *= param.shape[axis];
  for (int s = kFirstState; s < kCopy; ++s) {
    if (t.streams[s].data == nullptr || !has_scales(t.streams[s].dtype) || length % kBlock == 0) continue;
    throw std::invalid_argument(name + " has rows of " + std::to_string(length) +
                                " elements; with q8 states their number must be a multiple of " +
                                std::to_string(kBlock) + ", because so many elements share a scale");
  }
  if (t.rows == nullptr) t.rows = std::make_unique<RowGradient>();
  t.rows->assign(indices, values);
  slots_[tensor].data = nullptr;
  gradients_[tensor] = values.data;
  with_rows_.push_back(tensor);
  return owned_.gap_around(extent(values)).end == 0;
}

// All indices are read before anything is changed.
void Stepper::prepare_rows() {
  if (with_rows_.empty()) return;
  const cpu::NoFork whole;
  for (const std::size_t tensor : with_rows_) {
    const Tensor& t = tensors_[tensor];
    t.rows->read(t.param().shape[0], grads_ + t.name);
  }
  for (const std::size_t tensor : with_rows_) {
    const Tensor& t = tensors_[tensor];
    const Array grad = t.rows->sum(t.compute(), *backend_);
    slots_[tensor].of_rows = true;
    gradients_[tensor] = grad.data;
    set_layout(tensor, grad, t.rows.get());
  }
}

void Stepper::set_state(const StepState& state) {
  if (state.clocks.size() != tensors_.size()) throw std::invalid_argument("state must have one clock per tensor");
  has_pass_ = false;
  backend_->set_state(state);
}

// Without it, the elements of a parameter that is not in C order are traversed as they lie in memory.
void Stepper::set_order(bool in_order) {
  if (in_order == in_order_) return;
  in_order_ = in_order;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    if (!is_packed(tensors_[i].view(kParameter))) set_layout(i, tensors_[i].view(kGradient));
  }
}

void Stepper::run_parts(RunOptions options) {
  Squares squares;
  if (asked_.asks()) {
    squares = backend_->squares(gradients_.data());
    exchange_(squares);
    options.squares = &squares;
  } else if (stepped_) {
    stepped_(0);
  }
  if (stepped_) options.stepped = &stepped_;
  backend_->run(gradients_.data(), options);
}

void Stepper::run(const RunOptions& options) {
  has_pass_ = false;
  if (!parts_.empty() && (options.measures || !with_rows_.empty())) {
    throw std::invalid_argument("stats and row gradients are for whole tensors, and these are parts");
  }
  set_order(options.measures);
  prepare_rows();
  if (parts_.empty()) {
    backend_->run(gradients_.data(), options);
  } else {
    run_parts(options);
  }
  has_pass_ = asked_.asks();
}

}  // namespace gradstep::step
