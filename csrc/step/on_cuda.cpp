#include "step/on_cuda.h"

#include <algorithm>
#include <cstring>

namespace gradstep::step {

void OnCuda::lay_out(std::size_t tensor, const Job& job, const Layout& layout) {
  if (tensor >= tensors_.size()) tensors_.resize(tensor + 1);
  Tensor& t = tensors_[tensor];
  t = {};
  t.narrow = !layout.native();
  for (int s = 0; s < kMaxStreams; ++s) {
    t.row.streams[s] = job.streams[s];
    t.row.scales[s] = layout.scales[s];
    t.row.dtypes[s] = layout.dtypes[s];
    t.row.item_sizes[s] = static_cast<std::uint8_t>(item_size(layout.dtypes[s]));
    t.row.strided[s] = !layout.strides[s].empty();
  }
  if (std::any_of(std::begin(t.row.strided), std::end(t.row.strided), [](bool strided) { return strided; })) {
    t.walk.push_back(static_cast<std::int64_t>(layout.shape.size()));
    t.walk.insert(t.walk.end(), layout.shape.begin(), layout.shape.end());
    for (std::vector<std::int64_t> strides : layout.strides) {
      strides.resize(layout.shape.size());
      t.walk.insert(t.walk.end(), strides.begin(), strides.end());
    }
  }
  uploaded_ = false;
}

// Rows, chunks, the walks to which rows point, and sums where they are asked for, with which chunks are whose.
void OnCuda::upload(const Plan& plan) {
  const bool clips = limit_ == limit_;
  const std::size_t tensors = plan.first_chunk.size() - 1;
  const std::size_t rows = tensors_.size() * sizeof(cuda::Row), chunks = plan.pieces.size() * sizeof(cuda::Chunk);
  const std::size_t sums = clips ? (plan.pieces.size() + tensors) * sizeof(double) : 0;
  std::size_t walks = 0;
  for (const Tensor& t : tensors_) walks += t.walk.size() * sizeof(std::int64_t);
  std::vector<std::byte> bytes(rows + chunks + walks + sums + (clips ? (tensors + 1) * sizeof(std::uint32_t) : 0));
  cuda::Memory tables(bytes.size());

  std::size_t end = rows;
  const auto put = [&](const auto* from, std::size_t count) {
    std::byte* const there = tables.data() + end;
    std::memcpy(bytes.data() + end, from, count * sizeof *from);
    end += count * sizeof *from;
    return there;
  };
  for (const Piece& piece : plan.pieces) {
    const cuda::Chunk chunk{piece.tensor, piece.begin, piece.end};
    put(&chunk, 1);
  }
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    cuda::Row row = tensors_[i].row;
    const std::vector<std::int64_t>& walk = tensors_[i].walk;
    if (!walk.empty()) row.walk = reinterpret_cast<const std::int64_t*>(put(walk.data(), walk.size()));
    std::memcpy(bytes.data() + i * sizeof row, &row, sizeof row);
  }
  if (clips) {
    sums_.of_tensors = reinterpret_cast<double*>(tables.data() + end);
    sums_.of_chunks = sums_.of_tensors + tensors;
    end += sums;
    const std::vector<std::uint32_t> first_chunk(plan.first_chunk.begin(), plan.first_chunk.end());
    sums_.first_chunk = reinterpret_cast<const std::uint32_t*>(put(first_chunk.data(), first_chunk.size()));
    sums_.tensors = static_cast<std::uint32_t>(tensors);
  }
  tables.fill(bytes.data(), bytes.size());
  if (holds()) replaced_.push_back(std::move(tables_));
  tables_ = std::move(tables);
  rows_ = reinterpret_cast<const cuda::Row*>(tables_.data());
  chunks_ = reinterpret_cast<const cuda::Chunk*>(tables_.data() + rows);
  uploaded_ = true;
}

void OnCuda::set_limit(double limit) {
  limit_ = limit;
  if (clip_.data() == nullptr || limit != limit) return;
  const cuda::OnDevice on_device(device_);
  cuda::set_held(&reinterpret_cast<cuda::Clip*>(clip_.data())->limit, {limit}, stream_);
}

double OnCuda::clip(const Plan& plan, const Job* jobs, std::int64_t) {
  const cuda::OnDevice on_device(device_);
  if (clip_.data() == nullptr) {
    cuda::Memory memory(sizeof(cuda::Clip));
    const cuda::Clip clip{limit_, 0, 1};
    memory.fill(&clip, sizeof clip);
    clip_ = std::move(memory);
  }
  if (!uploaded_) upload(plan);
  sums_.clip = reinterpret_cast<cuda::Clip*>(clip_.data());
  cuda::NormWork work{jobs, plan.first_chunk.data(), rows_, chunks_, sums_, stream_};
  if (cuda::is_capturing(stream_)) {
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
  const cuda::OnDevice on_device(device_);
  cuda::set_held(held_.options + group * rules::kMaxOptions, options, stream_);
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
