#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "cuda/launch.h"
#include "cuda/runtime.h"
#include "step/backend.h"
#include "step/cuda_state.h"
#include "step/plan.h"

namespace gradstep::step {

// Runs steps on a GPU. Clocks and everything that does not change between steps are on the device; options and
// gradients are launch arguments.
class OnCuda : public Backend {
 public:
  void set_options(std::size_t group, const GroupOptions& options) override;
  void set_gradient_pass(const PassOptions& options) override;

  void add_tensor(const TensorInfo& info, const rules::Clock& clock) override;
  void set_layout(std::size_t tensor, std::byte* const* streams, Layout layout, Layout gradient,
                  std::int64_t size) override;

  void run(std::byte* const* gradients, const RunOptions& options) override;
  GradientPass gradient_pass() override;
  std::vector<TensorNorms> norms() override;
  double norm(std::byte* const* gradients) override;
  void set_parts(std::vector<Part> parts, std::vector<std::int64_t> buckets) override;
  Squares squares(std::byte* const* gradients) override;
  std::shared_ptr<std::byte> allocate(std::size_t bytes) override;
  void sum_rows(const Array& values, Compute compute, const RowSums& sums, std::int64_t count) override;

  StepState state() override;
  void set_state(const StepState& state) override;
  std::int64_t step_count() override;

  bool is_captured() const override { return captured_.data() != nullptr; }

  // Sets the device of the arrays and the stream of the next run.
  void use(int device, void* stream) {
    device_ = device;
    stream_ = stream;
  }
  // Throws where a step with row gradients could not be taken.
  void check_rows() const;
  // Waits until all work of the device is done.
  void wait() const {
    const cuda::OnDevice on_device(device_);
    cuda::wait_for_device();
  }
  bool is_capturing() const {
    const cuda::OnDevice on_device(device_);
    return cuda::is_capturing(stream_);
  }

 private:
  struct Tensor {
    cuda::TensorDesc desc{};
    std::vector<std::int64_t> strided_layout;  // see cuda::TensorDesc; then the rows of a row gradient
    std::size_t rows = 0;                      // their number
    bool stored = false;                       // whether something is stored in another type than the rule's

    Tensor() = default;
    Tensor(std::byte* const* streams, const Layout& layout, Compute compute);

    // The rows of a row gradient, in host memory.
    const std::int64_t* row_list() const { return strided_layout.data() + (strided_layout.size() - rows); }
  };

  cuda::Captured* captured() const { return reinterpret_cast<cuda::Captured*>(captured_.data()); }
  void upload(bool with_sums);
  void capture();
  void set_captured(double* there, const double* values, std::size_t count) const;
  std::vector<cuda::Work> works_for(std::byte* const* gradients, const cuda::DeviceState& state, bool clears) const;
  void load(const std::vector<cuda::Work>& works);
  cuda::NormWork norm_work(std::byte* const* gradients, const cuda::TensorDesc* descs) const;
  void prepare_measures(std::byte* const* gradients, double grad_scale);

  int device_ = -1;
  void* stream_ = nullptr;
  CudaState state_;
  std::vector<cuda::Group> groups_;
  PassOptions asked_{};

  std::vector<Tensor> tensors_, gradients_;  // the latter with the layouts that the norm uses
  Plan plan_;
  bool uploaded_ = false, has_sums_ = false;  // whether tables_ is current; whether it has the norm's tables
  cuda::Memory tables_;
  std::vector<cuda::Memory> replaced_;                    // tables that a captured graph may still read
  std::vector<cuda::Memory> row_lists_, used_row_lists_;  // of sums of rows for the next run, and for the last
  // Pointers into tables_:
  const cuda::TensorDesc *descs_ = nullptr, *gradient_descs_ = nullptr;
  const cuda::Chunk* chunks_ = nullptr;
  cuda::Sums sums_{};

  cuda::Memory captured_;                            // cuda::Captured, once a step has been captured
  std::vector<std::pair<rules::Key, bool>> loaded_;  // loaded kernels: key, and whether for stored types
  bool loaded_sums_ = false;                         // whether the norm's kernels are loaded

  // The rows of a row gradient in the last run: layouts may change before its result is read.
  struct StepRows {
    std::uint32_t tensor;
    std::int64_t length;  // elements of a row
    std::vector<std::int64_t> rows;
  };
  std::vector<StepRows> step_rows_;

  // Of the last run, if it measured norms, until they are read.
  struct Measured {
    cuda::Memory memory;
    cuda::NormSums sums{};         // pointers into memory
    std::vector<bool> takes_part;  // of each tensor
    double grad_scale = 1;
  };
  std::optional<Measured> measured_;
  std::vector<TensorNorms> norms_;  // that have been read
};

}  // namespace gradstep::step
