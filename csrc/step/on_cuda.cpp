#include "step/on_cuda.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "step/norm.h"

namespace gradstep::step {
namespace {

constexpr const char* kNoCapturedRows =
    "row gradients cannot be used while a step is captured, or after one was: a replay has the same rows";

}  // namespace

OnCuda::Tensor::Tensor(std::byte* const* streams, const Layout& layout, Compute compute)
    : stored(!layout.native || layout.has_more) {
  desc.compute = compute;
  for (int s = 0; s < kMaxStreams; ++s) {
    desc.streams[s] = streams[s];
    desc.scales[s] = layout.scales[s];
    desc.dtypes[s] = layout.dtypes[s];
    desc.item_sizes[s] = static_cast<std::uint8_t>(item_size(layout.dtypes[s]));
    desc.strided[s] = !layout.strides[s].empty();
  }
  const auto is_strided = [](bool strided) { return strided; };
  if (layout.rows == nullptr && std::none_of(std::begin(desc.strided), std::end(desc.strided), is_strided)) return;
  strided_layout.push_back(static_cast<std::int64_t>(layout.shape.size()));
  strided_layout.insert(strided_layout.end(), layout.shape.begin(), layout.shape.end());
  for (std::vector<std::int64_t> strides : layout.strides) {
    strides.resize(layout.shape.size());
    strided_layout.insert(strided_layout.end(), strides.begin(), strides.end());
  }
  if (layout.rows == nullptr) return;
  rows = static_cast<std::size_t>(layout.shape[0]);
  desc.row_length = rows == 0 ? 1 : layout.size() / layout.shape[0];
  strided_layout.insert(strided_layout.end(), layout.rows, layout.rows + rows);
}

void OnCuda::set_options(std::size_t group, const GroupOptions& options) {
  if (is_captured()) set_captured(captured()->groups()[group].options, options.values.data(), options.values.size());
  groups_.resize(std::max(groups_.size(), group + 1));
  groups_[group].key = options.key(Compute::kFloat);
  groups_[group].key.bounds = true;  // one kernel serves both
  std::copy(options.values.begin(), options.values.end(), groups_[group].options);
}

void OnCuda::set_gradient_pass(const PassOptions& options) {
  if (is_captured() && options.clipping != Clipping::kNone) set_captured(&captured()->asked.limit, &options.limit, 1);
  asked_ = options;
}

// The options of captured steps are on the device and change in stream order.
void OnCuda::set_captured(double* there, const double* values, std::size_t count) const {
  const cuda::OnDevice on_device(device_);
  if (cuda::is_capturing(stream_)) throw std::runtime_error("options cannot be set while a step is captured");
  cuda::set_captured(there, values, count, stream_);
}

void OnCuda::add_tensor(const TensorInfo& info, const rules::Clock& clock) {
  state_.add_tensor(info, clock);
  tensors_.emplace_back();
  gradients_.emplace_back();
  plan_ = {};
  uploaded_ = false;
}

void OnCuda::set_layout(std::size_t tensor, std::byte* const* streams, Layout layout, Layout gradient,
                        std::int64_t size) {
  const Compute compute = state_.tensors()[tensor].compute;
  if (state_.set_size(tensor, size)) plan_ = {};
  tensors_[tensor] = Tensor(streams, layout, compute);
  gradients_[tensor] = Tensor(streams, gradient, compute);
  uploaded_ = false;
}

// Uploads the tables that do not change between steps. The strided layouts come first: descriptions point to them.
void OnCuda::upload(bool with_sums) {
  if (uploaded_ && (has_sums_ || !with_sums)) return;
  has_sums_ = has_sums_ || with_sums;
  if (plan_.tasks.empty()) {
    std::vector<std::int64_t> sizes;
    for (const TensorInfo& tensor : state_.tensors()) sizes.push_back(tensor.size);
    plan_ = make_plan(sizes.data(), sizes.size(), kChunk);  // one piece per thread block
  }
  const std::size_t tensors = tensors_.size(), count = plan_.pieces.size();
  const std::vector<Tensor> none;
  const std::vector<Tensor>& gradients = has_sums_ ? gradients_ : none;
  std::vector<cuda::Chunk> chunks;
  for (const Piece& piece : plan_.pieces) chunks.push_back({piece.tensor, piece.begin, piece.end});
  const std::vector<std::uint32_t> first_chunk(plan_.first_chunk.begin(), plan_.first_chunk.end());
  const std::vector<double> sums(has_sums_ ? tensors + count : 0);
  const std::vector<std::int64_t> nonfinite(has_sums_ ? tensors : 0);
  const std::vector<std::uint32_t> from_end(has_sums_ ? count : 0);
  std::size_t strided_layouts = 0;
  for (const std::vector<Tensor>* descs : {&std::as_const(tensors_), &gradients}) {
    for (const Tensor& t : *descs) strided_layouts += t.strided_layout.size();
  }
  std::vector<std::byte> bytes(strided_layouts * sizeof(std::int64_t) +
                               (tensors + gradients.size()) * sizeof(cuda::TensorDesc) + count * sizeof(cuda::Chunk) +
                               sums.size() * sizeof(double) + nonfinite.size() * sizeof(std::int64_t) +
                               (first_chunk.size() + from_end.size()) * sizeof(std::uint32_t));
  cuda::Memory tables(bytes.size());

  std::size_t end = 0;
  const auto add = [&](const auto& values) {
    using Value = typename std::decay_t<decltype(values)>::value_type;
    auto* const there = reinterpret_cast<Value*>(tables.data() + end);
    const std::size_t size = values.size() * sizeof(Value);
    if (size > 0) std::memcpy(bytes.data() + end, values.data(), size);
    end += size;
    return there;
  };
  const auto add_descs = [&](const std::vector<Tensor>& from) {
    std::vector<cuda::TensorDesc> descs;
    for (const Tensor& t : from) {
      descs.push_back(t.desc);
      if (t.strided_layout.empty()) continue;
      descs.back().strided_layout = add(t.strided_layout);
      if (t.desc.row_length > 0) {
        descs.back().rows = descs.back().strided_layout + (t.strided_layout.size() - t.rows);
      }
    }
    return add(descs);
  };
  descs_ = add_descs(tensors_);
  gradient_descs_ = add_descs(gradients);
  chunks_ = add(chunks);
  sums_.of_chunks = add(sums);
  sums_.of_tensors = sums_.of_chunks + count;
  sums_.nonfinite = add(nonfinite);
  sums_.first_chunk = add(first_chunk);
  sums_.nonfinite_from_end = add(from_end);
  sums_.tensors = static_cast<std::uint32_t>(tensors);
  cuda::copy_to_device(tables.data(), bytes.data(), bytes.size());
  if (is_captured()) replaced_.push_back(std::move(tables_));
  tables_ = std::move(tables);
  uploaded_ = true;
}

// Uploads the options that captured steps read from the device instead of their launch arguments.
void OnCuda::capture() {
  cuda::Captured head{asked_, no_pass(1)};
  head.pass.norm = std::numeric_limits<double>::quiet_NaN();
  const std::size_t groups = groups_.size() * sizeof(cuda::Group);
  std::vector<std::byte> bytes(sizeof head + groups);
  std::memcpy(bytes.data(), &head, sizeof head);
  if (groups > 0) std::memcpy(bytes.data() + sizeof head, groups_.data(), groups);
  cuda::Memory memory(bytes.size());
  cuda::copy_to_device(memory.data(), bytes.data(), bytes.size());
  captured_ = std::move(memory);
  state_.expect_replays();
}

cuda::NormWork OnCuda::norm_work(std::byte* const* gradients, const cuda::TensorDesc* descs) const {
  return {gradients, plan_.first_chunk.data(), descs, chunks_, sums_, stream_};
}

// Usually there is one element: the tensors of a step differ in scalars, rarely in kernels.
std::vector<cuda::Work> OnCuda::works_for(std::byte* const* gradients, const cuda::DeviceState& state,
                                          bool clears) const {
  std::vector<cuda::Work> works;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    if (gradients[i] == nullptr) continue;
    const TensorInfo& info = state_.tensors()[i];
    rules::Key key = groups_[static_cast<std::size_t>(info.group)].key;
    key.compute = info.compute;
    auto work = std::find_if(works.begin(), works.end(), [&](const cuda::Work& w) { return w.key == key; });
    if (work == works.end()) {
      const std::vector<std::byte*> none(tensors_.size());
      const GradientPass* const pass = asked_.asks() ? state.pass : nullptr;
      work = works.insert(
          work, {key, false, clears, none, plan_.first_chunk.data(), descs_, chunks_, state.steps, pass, stream_});
    }
    work->stored = work->stored || tensors_[i].stored;
    work->gradients[i] = gradients[i];
  }
  return works;
}

// Loads the kernels before the step's first launch. The driver would otherwise load them at their first launch, which
// is not allowed while a stream is captured, and whose failure would leave the step partly done.
void OnCuda::load(const std::vector<cuda::Work>& works) {
  if (asked_.asks() && !loaded_sums_) {
    cuda::load_sums(tensors_.size());
    loaded_sums_ = true;
  }
  if (loaded_.empty()) cuda::load_advance();
  for (const cuda::Work& work : works) {
    const std::pair kernel(work.key, work.stored);
    if (std::find(loaded_.begin(), loaded_.end(), kernel) != loaded_.end()) continue;
    cuda::load(work);
    loaded_.push_back(kernel);
  }
}

// Allocates the memory of a step that measures norms.
void OnCuda::prepare_measures(std::byte* const* gradients, double grad_scale) {
  const std::size_t tensors = tensors_.size(), chunks = plan_.pieces.size();
  const std::size_t sums = cuda::NormSums::kKinds * (chunks + tensors);
  std::vector<std::size_t> offsets;
  std::size_t end = sums * sizeof(double) + tensors * sizeof(std::byte*);
  for (const TensorInfo& tensor : state_.tensors()) {
    end = (end + alignof(double) - 1) / alignof(double) * alignof(double);
    offsets.push_back(end);
    end += static_cast<std::size_t>(tensor.size * size_of(tensor.compute));
  }
  Measured measured;
  measured.memory = cuda::Memory(end);
  auto* const first = reinterpret_cast<double*>(measured.memory.data());
  measured.sums.of_chunks = first;
  measured.sums.of_tensors = first + cuda::NormSums::kKinds * chunks;
  auto* const before = reinterpret_cast<std::byte**>(first + sums);
  std::vector<std::byte*> places;
  for (const std::size_t offset : offsets) places.push_back(measured.memory.data() + offset);
  cuda::copy_to_device(before, places.data(), tensors * sizeof(std::byte*));
  measured.sums.before = before;
  measured.sums.first_chunk = sums_.first_chunk;
  measured.sums.tensors = static_cast<std::uint32_t>(tensors);
  measured.sums.chunks = static_cast<std::uint32_t>(chunks);
  for (std::size_t i = 0; i < tensors; ++i) measured.takes_part.push_back(gradients[i] != nullptr);
  measured.grad_scale = grad_scale;
  measured_ = std::move(measured);
}

std::vector<TensorNorms> OnCuda::norms() {
  if (!measured_) return norms_;
  const cuda::OnDevice on_device(device_);
  cuda::wait_for_device();
  std::vector<double> sums(cuda::NormSums::kKinds * tensors_.size());
  cuda::copy_to_host(sums.data(), measured_->sums.of_tensors, sums.size() * sizeof(double));
  const Measured measured = std::move(*measured_);
  measured_.reset();
  if (asked_.asks() && gradient_pass().skip) return norms_;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const double* const of = &sums[cuda::NormSums::kKinds * i];
    norms_.push_back(measured.takes_part[i] ? evaluate_norms(of[0], of[1], of[2], measured.grad_scale) : TensorNorms{});
  }
  return norms_;
}

std::shared_ptr<std::byte> OnCuda::allocate(std::size_t bytes) {
  const cuda::OnDevice on_device(device_);
  auto memory = std::make_shared<cuda::Memory>(std::max<std::size_t>(bytes, 1));
  return {memory, memory->data()};
}

void OnCuda::check_rows() const {
  if (is_captured() || is_capturing()) throw std::runtime_error(kNoCapturedRows);
}

void OnCuda::sum_rows(const Array& values, Compute compute, const RowSums& sums, std::int64_t count) {
  const cuda::OnDevice on_device(device_);
  std::byte* streams[kMaxStreams] = {};
  streams[kGradient] = values.data;
  Tensor gradient(streams, norm_layout(values, compute), compute);
  std::vector<std::int64_t> lists = gradient.strided_layout;
  const std::size_t first = lists.size(), places = first + static_cast<std::size_t>(count) + 1;
  lists.insert(lists.end(), sums.first, sums.first + count + 1);
  lists.insert(lists.end(), sums.places, sums.places + sums.first[count]);
  cuda::Memory memory(lists.size() * sizeof(std::int64_t));
  cuda::copy_to_device(memory.data(), lists.data(), lists.size() * sizeof(std::int64_t));
  const auto* const there = reinterpret_cast<const std::int64_t*>(memory.data());
  gradient.desc.strided_layout = gradient.strided_layout.empty() ? nullptr : there;
  cuda::launch_row_sums(gradient.desc, values.data, {there + first, there + places, sums.length, sums.to}, count,
                        stream_);
  row_lists_.push_back(std::move(memory));
}

void OnCuda::run(std::byte* const* gradients, const RunOptions& options) {
  const double grad_scale = options.grad_scale;
  const bool clears = options.clears, measures = options.measures;
  const cuda::OnDevice on_device(device_);
  const bool capturing = cuda::is_capturing(stream_);
  if (capturing && measures) throw std::runtime_error("a step that measures norms cannot be captured");
  std::vector<StepRows> step_rows;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const Tensor& tensor = tensors_[i];
    if (tensor.desc.row_length == 0 || gradients[i] == nullptr) continue;
    if (capturing || is_captured()) throw std::runtime_error(kNoCapturedRows);
    const std::int64_t* const rows = tensor.row_list();
    step_rows.push_back({static_cast<std::uint32_t>(i), tensor.desc.row_length, {rows, rows + tensor.rows}});
  }
  upload(asked_.asks() || measures);
  if (capturing && !is_captured()) capture();
  cuda::DeviceState state = state_.on_device();
  if (is_captured()) state.pass = &captured()->pass;
  const std::vector<cuda::Work> works = works_for(gradients, state, clears);
  const cuda::AdvanceWork advance{gradients,
                                  state_.groups().data(),
                                  static_cast<std::uint32_t>(tensors_.size()),
                                  groups_,
                                  state,
                                  capturing ? captured() : nullptr,
                                  asked_,
                                  grad_scale,
                                  asked_.asks() ? sums_ : cuda::Sums{},
                                  stream_};
  load(works);
  step_rows_ = std::move(step_rows);
  used_row_lists_ = std::exchange(row_lists_, {});
  norms_.clear();
  measured_.reset();
  if (measures) prepare_measures(gradients, grad_scale);

  state_.begin_step();
  if (asked_.asks()) cuda::launch_sums(norm_work(gradients, gradient_descs_));
  if (measures) cuda::launch_measure_before(norm_work(gradients, descs_), measured_->sums);
  cuda::launch_advance(advance);
  for (const cuda::Work& work : works) cuda::launch(work);
  if (measures) cuda::launch_measure_after(norm_work(gradients, descs_), measured_->sums);
  if (!capturing && !asked_.skips_nonfinite) state_.end_step();
}

GradientPass OnCuda::gradient_pass() {
  const cuda::OnDevice on_device(device_);
  cuda::wait_for_device();
  GradientPass pass;
  cuda::copy_to_host(&pass, is_captured() ? &captured()->pass : state_.on_device().pass, sizeof pass);
  for (const StepRows& of : step_rows_) {
    if (!pass.nonfinite.exists() || of.tensor != pass.nonfinite.tensor) continue;
    const std::int64_t element = pass.nonfinite.element;
    pass.nonfinite.element = of.rows[static_cast<std::size_t>(element / of.length)] * of.length + element % of.length;
  }
  return pass;
}

void OnCuda::set_parts(std::vector<Part>, std::vector<std::int64_t>) {
  throw std::invalid_argument("parts of tensors are for a processor");
}

Squares OnCuda::squares(std::byte* const*) { return {}; }

double OnCuda::norm(std::byte* const* gradients) {
  const cuda::OnDevice on_device(device_);
  upload(true);
  cuda::DeviceState state{};
  state.pass = state_.on_device().pass;
  cuda::launch_sums(norm_work(gradients, gradient_descs_));
  cuda::launch_advance({nullptr, nullptr, 0, groups_, state, nullptr, {}, 1, sums_, stream_});
  return gradient_pass().norm;
}

StepState OnCuda::state() {
  const cuda::OnDevice on_device(device_);
  return state_.get();
}

void OnCuda::set_state(const StepState& state) {
  const cuda::OnDevice on_device(device_);
  state_.set(state);
}

std::int64_t OnCuda::step_count() {
  const cuda::OnDevice on_device(device_);
  return state_.step_count();
}

}  // namespace gradstep::step
