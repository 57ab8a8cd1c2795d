#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "step/array.h"
#include "step/backend.h"
#include "step/catalog.h"
#include "step/layout.h"
#include "step/norm.h"
#include "step/ranges.h"

namespace gradstep::step {

// Something is of the wrong type, as opposed to a wrong value (std::invalid_argument).
struct WrongType : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// All the tensors of one optimizer, stepped in one call. It validates, and lets a backend run what is to be done; it
// owns no array.
//
// A step is: begin(), then set_gradient() for every tensor that is to take part, then run(). Only run() writes. Where
// gradients lie where they did, run() alone is the next step.
class Stepper {
 public:
  // Messages call the arrays what the user does.
  Stepper(int rule, std::unique_ptr<Backend> backend, std::string params, std::string grads)
      : rule_(rule), backend_(std::move(backend)), params_(std::move(params)), grads_(std::move(grads)) {}

  // Options in the order of the rule's catalog entry. Returns the group's number.
  int add_group(std::vector<double> options);
  // Throws where the options would add or drop a state.
  void check_options(int group, const std::vector<double>& options) const;
  void set_options(int group, std::vector<double> options);
  void set_lr(int group, double lr);

  // From now on the gradients of a step are multiplied by what makes the norm of all of them together `limit` at most.
  // None: by nothing. Throws where a captured step does otherwise, or the backend does; then nothing has changed.
  void set_clip_norm(std::optional<double> limit);
  // From now on a step whose gradients have a norm that is not finite leaves all as it is. Throws likewise.
  void set_skip_nonfinite(bool on);
  // The norm of the last step's gradients, if the step asked for it, before it was limited.
  std::optional<double> grad_norm();

  // `name` follows what the arrays are called: "[3]", "['w']". A state, or a master, that is not kept has null data.
  // With a master, steps update that, and the parameter becomes its rounding.
  void add_tensor(int group, std::string name, const Array& param, const std::vector<Array>& states,
                  const Array& master = {});

  void begin();
  // Throws where its shape is not the parameter's, or its dtype none that goes with the parameter's. Returns whether
  // the gradient lies among the bytes of parameters and states, so that an exact test is due.
  bool set_gradient(std::size_t tensor, const Array& grad);
  // Throws where the backend does: it writes nothing then, and the step is not counted.
  void run();

  // Lets go of what the backend has, for which it may wait; nothing but the end can follow.
  void release() { backend_.reset(); }

  std::size_t size() const { return tensors_.size(); }
  const std::string& name(std::size_t tensor) const { return tensors_[tensor].name; }

  StepState state() { return backend_->state(); }
  void set_state(const StepState& state);
  std::int64_t step_count() { return backend_->step_count(); }

 private:
  struct Tensor {
    std::string name;
    int group;
    KeptArray streams[kMaxStreams];  // the gradient's stands for one that lies as the last did

    const KeptArray& param() const { return streams[streams[kCopy].data == nullptr ? kParameter : kCopy]; }
  };

  // What every step reads of a tensor, in a cache line.
  struct alignas(64) Slot {
    Extent free{0, 0};  // bytes around the last gradient that no parameter or state has
    // Of the last gradient: where this one has the same and is aligned, the layout stands.
    const std::int64_t *shape, *strides;
    DType dtype;
    bool aligned = true;
    std::int8_t rank;
  };
  static_assert(sizeof(Slot) == 64);
  static_assert(std::is_nothrow_move_constructible_v<Tensor>, "slots point to shapes that must stay where they are");

  const RuleInfo& info() const { return catalog()[static_cast<std::size_t>(rule_)]; }
  void set_gradient_pass(const PassOptions& asked);
  void set_layout(std::size_t tensor, const Array& grad);
  [[noreturn]] void refuse_gradient(std::size_t tensor, const Array& grad) const;
  void find_owned();

  int rule_;
  std::unique_ptr<Backend> backend_;
  std::string params_, grads_;
  std::vector<GroupOptions> groups_;
  std::vector<Tensor> tensors_;
  std::vector<Slot> slots_;            // one a tensor,
  std::vector<std::byte*> gradients_;  // and one; null: it takes no part in the next step
  Ranges owned_;                       // parameters and states,
  bool owned_is_known_ = false;        // from the first step on
  PassOptions asked_{};                // of the pass over gradients
  bool has_pass_ = false;              // the last step
};

}  // namespace gradstep::step
