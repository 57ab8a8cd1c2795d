#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "cuda/launch.h"
#include "cuda/runtime.h"
#include "step/backend.h"

namespace gradstep::step {

// Steps on a GPU. What does not change from step to step lies there; the rest travels with the launch.
class OnCuda : public Backend {
 public:
  // A piece of the plan is a thread block's.
  std::int64_t grain(std::int64_t) const override { return kChunk; }

  void lay_out(std::size_t tensor, const Job& job, const Layout& layout) override {
    put(tensors_, tensor, Tensor(job, layout));
  }
  void lay_out_gradient(std::size_t tensor, const Job& job, const Layout& layout) override {
    put(gradients_, tensor, Tensor(job, layout));
  }
  void take(const Plan&) override { uploaded_ = false; }
  void run(const Plan& plan, const Job* jobs, std::int64_t bytes) override;

  void set_limit(double limit) override;
  double clip(const Plan& plan, const Job* jobs, std::int64_t bytes) override;
  double norm() override;

  // From the first step that is captured in a graph on, times are the device's.
  bool holds() const override { return held_.steps != nullptr; }
  bool must_hold() const override {
    const cuda::OnDevice on_device(device_);
    return cuda::is_capturing(stream_);
  }
  void hold(const Times& times) override;
  void read(Times& times) override;
  void set_options(int group, const std::vector<double>& options) override;

  // Where the arrays are, and the stream of the next run.
  void use(int device, void* stream) {
    device_ = device;
    stream_ = stream;
  }

 private:
  struct Tensor {
    cuda::Row row{};
    std::vector<std::int64_t> walk;  // see cuda::Row
    bool narrow = false;             // whether something is stored in another type than the rule's

    Tensor() = default;
    Tensor(const Job& job, const Layout& layout);
  };

  void put(std::vector<Tensor>& tensors, std::size_t place, Tensor tensor);
  void upload(const Plan& plan);
  void set_held(double* there, const std::vector<double>& values) const;

  int device_ = -1;
  void* stream_ = nullptr;
  std::vector<Tensor> tensors_, gradients_;  // the latter where they are clipped: as the norm goes along them
  bool uploaded_ = false;
  cuda::Memory tables_;
  std::vector<cuda::Memory> replaced_;  // what a graph may still read
  // In the tables:
  const cuda::Row *rows_ = nullptr, *gradient_rows_ = nullptr;
  const cuda::Chunk* chunks_ = nullptr;
  cuda::Sums sums_{};
  double limit_ = std::numeric_limits<double>::quiet_NaN();  // of the norm; NaN: none
  cuda::Memory clip_;                                        // cuda::Clip,
  bool holds_clip_ = false;                                  // whose limit counts, not what launches bring
  cuda::Memory times_;
  cuda::Held held_{};  // in it
};

}  // namespace gradstep::step
