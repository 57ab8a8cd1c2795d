#include "step/on_cuda.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

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

void OnCuda::take(const Plan& plan) {
  first_chunk_.assign(tensors_.size() + 1, 0);
  for (const Piece& piece : plan.pieces) ++first_chunk_[piece.tensor + 1];
  for (std::size_t i = 0; i < tensors_.size(); ++i) first_chunk_[i + 1] += first_chunk_[i];
  uploaded_ = false;
}

// Rows, chunks, and the walks to which rows point.
void OnCuda::upload(const Plan& plan) {
  if (cuda::is_capturing(stream_)) {
    throw std::runtime_error(
        "CUDA: a step that is captured must be like one before it, or its tables would be copied at every replay; take "
        "one with gradients that lie as these do first");
  }
  const std::size_t rows = tensors_.size() * sizeof(cuda::Row), chunks = plan.pieces.size() * sizeof(cuda::Chunk);
  std::size_t walks = 0;
  for (const Tensor& t : tensors_) walks += t.walk.size() * sizeof(std::int64_t);
  std::vector<std::byte> tables(rows + chunks + walks);
  cuda::Memory memory(tables.size());

  std::size_t end = rows;
  for (const Piece& piece : plan.pieces) {
    const cuda::Chunk chunk{piece.tensor, piece.begin, piece.end};
    std::memcpy(tables.data() + end, &chunk, sizeof chunk);
    end += sizeof chunk;
  }
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    cuda::Row row = tensors_[i].row;
    const std::vector<std::int64_t>& walk = tensors_[i].walk;
    if (!walk.empty()) {
      row.walk = reinterpret_cast<const std::int64_t*>(memory.data() + end);
      std::memcpy(tables.data() + end, walk.data(), walk.size() * sizeof walk[0]);
      end += walk.size() * sizeof walk[0];
    }
    std::memcpy(tables.data() + i * sizeof row, &row, sizeof row);
  }
  memory.fill(tables.data(), tables.size());
  memory_ = std::move(memory);
  rows_ = reinterpret_cast<const cuda::Row*>(memory_.data());
  chunks_ = reinterpret_cast<const cuda::Chunk*>(memory_.data() + rows);
  uploaded_ = true;
}

void OnCuda::run(const Plan& plan, const Job* jobs, std::int64_t) {
  const cuda::OnDevice on_device(device_);
  if (!uploaded_) upload(plan);

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
        found = works.insert(found, {update->key, false, jobs, static_cast<std::uint32_t>(tensors_.size()), rows_,
                                     chunks_, nullptr, first_chunk_.data(), stream_});
      }
      work = &*found;
      last = update;
    }
    work->stored = work->stored || tensors_[i].narrow;
  }
  for (const cuda::Work& one : works) cuda::launch(one);
}

}  // namespace gradstep::step
