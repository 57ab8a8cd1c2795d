#include "step/on_cuda.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <type_traits>
#include <utility>

namespace gradstep::step {

OnCuda::Tensor::Tensor(const Job& job, const Layout& layout) : narrow(!layout.native()) {
  for (int s = 0; s < kMaxStreams; ++s) {
    row.streams[s] = job.streams[s];
    row.scales[s] = layout.scales[s];
    row.dtypes[s] = layout.dtypes[s];
    row.item_sizes[s] = static_cast<std::uint8_t>(item_size(layout.dtypes[s]));
    row.strided[s] = !layout.strides[s].empty();
  }
  if (std::none_of(std::begin(row.strided), std::end(row.strided), [](bool strided) { return strided; })) return;
  walk.push_back(static_cast<std::int64_t>(layout.shape.size()));
  walk.insert(walk.end(), layout.shape.begin(), layout.shape.end());
  for (std::vector<std::int64_t> strides : layout.strides) {
    strides.resize(layout.shape.size());
    walk.insert(walk.end(), strides.begin(), strides.end());
  }
}

void OnCuda::put(std::vector<Tensor>& tensors, std::size_t place, Tensor tensor) {
  if (place >= tensors.size()) tensors.resize(place + 1);
  tensors[place] = std::move(tensor);
  uploaded_ = false;
}

// What does not change from step to step, the walks first, to which rows point.
void OnCuda::upload(const Plan& plan) {
  const std::size_t tensors = plan.first_chunk.size() - 1, count = plan.pieces.size();
  std::vector<cuda::Chunk> chunks;
  for (const Piece& piece : plan.pieces) chunks.push_back({piece.tensor, piece.begin, piece.end});
  const std::vector<std::uint32_t> first_chunk(plan.first_chunk.begin(), plan.first_chunk.end());
  const std::vector<double> sums(gradients_.empty() ? 0 : tensors + count);
  std::size_t walks = 0;
  for (const auto* rows : {&tensors_, &gradients_}) {
    for (const Tensor& t : *rows) walks += t.walk.size();
  }
  std::vector<std::byte> bytes(walks * sizeof(std::int64_t) +
                               (tensors_.size() + gradients_.size()) * sizeof(cuda::Row) + count * sizeof(cuda::Chunk) +
                               sums.size() * sizeof(double) + first_chunk.size() * sizeof(std::uint32_t));
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
  const auto add_rows = [&](const std::vector<Tensor>& from) {
    std::vector<cuda::Row> rows;
    for (const Tensor& t : from) {
      rows.push_back(t.row);
      if (!t.walk.empty()) rows.back().walk = add(t.walk);
    }
    return add(rows);
  };
  rows_ = add_rows(tensors_);
  gradient_rows_ = add_rows(gradients_);
  chunks_ = add(chunks);
  sums_.of_chunks = add(sums);
  sums_.of_tensors = sums_.of_chunks + count;
  sums_.first_chunk = add(first_chunk);
  sums_.tensors = static_cast<std::uint32_t>(tensors);
  tables.fill(bytes.data(), bytes.size());
  if (holds()) replaced_.push_back(std::move(tables_));
  tables_ = std::move(tables);
  uploaded_ = true;
}

void OnCuda::set_limit(double limit) {
  if (holds_clip_) set_held(&reinterpret_cast<cuda::Clip*>(clip_.data())->limit, {limit});
  limit_ = limit;
}

double OnCuda::clip(const Plan& plan, const Job* jobs, std::int64_t) {
  const cuda::OnDevice on_device(device_);
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  if (clip_.data() == nullptr || holds_clip_ != holds()) {
    cuda::Memory memory(sizeof(cuda::Clip));
    const cuda::Clip clip{limit_, kNone, 1};
    memory.fill(&clip, sizeof clip);
    replaced_.push_back(std::exchange(clip_, std::move(memory)));  // which steps on the way may still read
    holds_clip_ = holds();
  }
  if (!uploaded_) upload(plan);
  sums_.clip = reinterpret_cast<cuda::Clip*>(clip_.data());
  sums_.limit = holds_clip_ ? kNone : limit_;
  cuda::NormWork work{jobs, plan.first_chunk.data(), gradient_rows_, chunks_, sums_, stream_};
  if (cuda::is_capturing(stream_)) {  // else the launches do so
    work.loads = true;
    cuda::launch_norm(work);
    work.loads = false;
  }
  cuda::launch_norm(work);
  return 1;
}

double OnCuda::norm() {
  const cuda::OnDevice on_device(device_);
  cuda::wait_for_device();
  cuda::Clip clip;
  cuda::copy_to_host(&clip, clip_.data(), sizeof clip);
  return clip.norm;
}

void OnCuda::hold(const Times& times) {
  const cuda::OnDevice on_device(device_);
  const std::size_t tensors = times.clocks.size();
  const std::size_t steps = tensors * cuda::kMaxStep, clocks = tensors * sizeof(rules::Clock);
  const std::size_t options = times.options.size() * rules::kMaxOptions * sizeof(double);
  std::vector<std::byte> bytes(steps + clocks + options + sizeof(std::int64_t) + tensors * sizeof(std::uint32_t));
  if (holds()) {
    cuda::wait_for_device();  // steps on the way have their own times
  } else {
    times_ = cuda::Memory(bytes.size());
  }
  cuda::Held held{};
  held.steps = times_.data();
  held.clocks = reinterpret_cast<rules::Clock*>(held.steps + steps);
  held.options = reinterpret_cast<double*>(held.steps + steps + clocks);
  held.taken = reinterpret_cast<std::int64_t*>(held.steps + steps + clocks + options);
  held.groups = reinterpret_cast<const std::uint32_t*>(held.taken + 1);

  const auto put = [&](const void* there, const void* from, std::size_t size) {
    std::memcpy(bytes.data() + (static_cast<const std::byte*>(there) - times_.data()), from, size);
  };
  put(held.clocks, times.clocks.data(), clocks);
  for (std::size_t group = 0; group < times.options.size(); ++group) {
    const std::vector<double>& values = times.options[group];
    put(held.options + group * rules::kMaxOptions, values.data(), values.size() * sizeof values[0]);
  }
  put(held.taken, &times.taken, sizeof times.taken);
  put(held.groups, times.groups.data(), tensors * sizeof times.groups[0]);
  times_.fill(bytes.data(), bytes.size());
  held_ = held;
}

void OnCuda::read(Times& times) {
  const cuda::OnDevice on_device(device_);
  cuda::wait_for_device();
  cuda::copy_to_host(times.clocks.data(), held_.clocks, times.clocks.size() * sizeof(rules::Clock));
  cuda::copy_to_host(&times.taken, held_.taken, sizeof times.taken);
}

void OnCuda::set_options(int group, const std::vector<double>& options) {
  set_held(held_.options + group * rules::kMaxOptions, options);
}

void OnCuda::set_held(double* there, const std::vector<double>& values) const {
  const cuda::OnDevice on_device(device_);
  if (cuda::is_capturing(stream_)) throw std::runtime_error("options cannot be set while a step is captured");
  cuda::set_held(there, values, stream_);
}

void OnCuda::run(const Plan& plan, const Job* jobs, std::int64_t) {
  const cuda::OnDevice on_device(device_);
  if (!uploaded_) upload(plan);

  const auto* const clip = limit_ == limit_ ? reinterpret_cast<const cuda::Clip*>(clip_.data()) : nullptr;

  // Nearly always one: the tensors of a step differ in scalars, seldom in what is done.
  std::vector<cuda::Work> works;
  const Update* last = nullptr;
  cuda::Work* work = nullptr;
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    const Update* const update = jobs[i].update;
    if (update == nullptr) continue;
    if (update != last) {
      const auto same = [=](const cuda::Work& w) { return w.key == update->key; };
      auto found = std::find_if(works.begin(), works.end(), same);
      if (found == works.end()) {
        found = works.insert(found, {update->key, false, jobs, static_cast<std::uint32_t>(tensors_.size()),
                                     plan.first_chunk.data(), rows_, chunks_, held_, clip, stream_});
      }
      work = &*found;
      last = update;
    }
    work->stored = work->stored || tensors_[i].narrow;
  }
  if (holds() && works.empty()) cuda::count_held(held_, stream_);
  if (holds() && cuda::is_capturing(stream_)) {  // else the launches do so
    for (const cuda::Work& one : works) cuda::load(one);
  }
  for (cuda::Work& one : works) {
    if (&one != works.data()) one.held.taken = nullptr;  // the first has counted the step
    if (holds()) cuda::advance_held(one);
    cuda::launch(one);
  }
}

}  // namespace gradstep::step
