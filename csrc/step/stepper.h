#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
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
#include "step/rows.h"

namespace gradstep::step {

// A wrong type, as opposed to a wrong value (std::invalid_argument).
struct WrongType : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// All tensors of one optimizer, updated in one call. A Stepper validates and delegates the work to a backend; it owns
// no array.
//
// A step is: begin(), then set_gradient() for every tensor that is to take part, then run(). Only run() writes. If all
// gradients are at the same addresses as in the last step, run() suffices for the next.
class Stepper {
 public:
  // `params` and `grads` are the names of the arrays in error messages.
  Stepper(std::unique_ptr<Backend> backend, std::string params, std::string grads)
      : backend_(std::move(backend)), params_(std::move(params)), grads_(std::move(grads)) {}

  // Adds a group whose tensors a rule updates, with options in the order of its catalog entry. Returns the group's
  // number.
  int add_group(int rule, std::vector<double> options);
  // Throws if the options would change which states are kept, or cannot change any more.
  void check_options(int group, const std::vector<double>& options) const;
  void set_options(int group, std::vector<double> options);
  // Sets one option, as set_options() does.
  void set_number(int group, const std::string& name, double value);

  // Sets the gradient pass of later steps. Throws if a captured step has another one, which differs in more than the
  // limit, or if the backend throws; then nothing has changed.
  void set_gradient_pass(const PassOptions& asked);
  // The result of the last step's gradient pass, if it had one.
  std::optional<GradientPass> gradient_pass();
  // The norms of each tensor in the last step; empty if it measured none or was skipped.
  std::vector<TensorNorms> norms() { return backend_->norms(); }

  // The arrays that a parameter may have besides its states; null data: there is none. With a master, steps update the
  // master and round it to the parameter; there is no copy then.
  struct Beside {
    Array master{}, copy{}, average{};
  };

  // `name` is appended to the name of the arrays: "[3]", "['w']". A state that is not kept has null data.
  void add_tensor(int group, std::string name, const Array& param, const std::vector<Array>& states,
                  const Beside& beside);
  void add_tensor(int group, std::string name, const Array& param, const std::vector<Array>& states) {
    add_tensor(group, std::move(name), param, states, Beside{});
  }

  // Gives a tensor other memory: arrays of the shapes and types that it has.
  void move_tensor(std::size_t tensor, const Array& param, const std::vector<Array>& states, const Beside& beside);

  // Makes the tensors parts of wholes, one of each whole, which random bits and norms then go by. Where a step has a
  // gradient pass, `exchange` is given the sums of the parts, and replaces them by those of the wholes. It is called
  // before anything is written, and may throw.
  //
  // Steps update buckets of successive elements, of the given sizes, one after the other. `stepped`, where it is given,
  // is called with the number of buckets that were updated: after each; and with 0 before anything is written, where it
  // may throw, in steps without a gradient pass. What it throws later is thrown at the end of the step.
  using Exchange = std::function<void(Squares& squares)>;
  void set_parts(std::vector<Part> parts, Exchange exchange, const std::vector<std::int64_t>& buckets = {},
                 Stepped stepped = {});

  // Makes room for so many tensors more.
  void reserve(std::size_t tensors);

  void begin();
  // Throws where its shape is not the parameter's, or its dtype none that goes with the parameter's. Returns whether
  // the gradient lies among the bytes of parameters and states, so that an exact test is due.
  bool set_gradient(std::size_t tensor, const Array& grad) {
    const Slot& slot = slots_[tensor];
    gradients_[tensor] = grad.data;
    return slot.data != grad.data || !slot.is_like(grad) || !slot.aligned ? place_gradient(tensor, grad) : false;
  }
  // The same for a gradient of some rows. Its indices are read by run().
  bool set_rows(std::size_t tensor, const IndexArray& indices, const Array& values);
  // Whether the next step, or the last one, updates a tensor.
  bool takes_part(std::size_t tensor) const { return gradients_[tensor] != nullptr; }
  // The type of the last gradient, which is most likely that of the next.
  DType gradient_dtype(std::size_t tensor) const { return slots_[tensor].dtype; }
  // Throws where the backend does, or where an index of a row is out of range: nothing is written then, and the step is
  // not counted.
  void run(const RunOptions& options);

  // Destroys the backend, which may synchronize. Only the destructor may be called afterwards.
  void release() {
    for (Tensor& tensor : tensors_) tensor.rows.reset();  // they have memory of the backend
    backend_.reset();
  }

  std::size_t size() const { return tensors_.size(); }
  const std::string& name(std::size_t tensor) const { return tensors_[tensor].name; }

  StepState state() { return backend_->state(); }
  void set_state(const StepState& state);
  std::int64_t step_count() { return backend_->step_count(); }

  // Whether a step was captured in a graph, which may take it again without a call.
  bool is_captured() const { return backend_->is_captured(); }

 private:
  // All streams of a tensor have one shape.
  struct Tensor {
    struct Stream {
      std::byte* data = nullptr;
      float* scales = nullptr;
      DType dtype{};
    };

    std::string name;
    int group;
    int rank = 0;
    bool has_master;
    Stream streams[kMaxStreams];        // the gradient's has the layout of the last one, not its data
    std::vector<std::int64_t> axes;     // the shape, then the strides of each stream
    std::unique_ptr<RowGradient> rows;  // the last gradient of some rows

    void set_shape(const Array& like) {
      rank = like.rank;
      axes.assign(static_cast<std::size_t>(rank * (1 + kMaxStreams)), 0);
      std::copy_n(like.shape, rank, axes.begin());
    }
    void set(int s, const Array& array) {
      streams[s] = {array.data, array.scales, array.dtype};
      std::copy_n(array.strides, rank, axes.begin() + rank * (1 + s));
    }
    Array view(int s) const {
      const auto& [data, scales, dtype] = streams[s];
      return {data, dtype, rank, axes.data(), axes.data() + rank * (1 + s), scales};
    }
    Array param() const { return view(has_master ? kCopy : kParameter); }
    Compute compute() const { return compute_of(param().dtype); }
  };

  // The data of a tensor that every step reads, in one cache line.
  struct alignas(64) Slot {
    Extent free{0, 0};  // bytes around the last gradient without parameters or states
    // Properties of the last gradient: if the next has the same and is aligned, the layout is still valid.
    const std::int64_t *shape, *strides;
    const std::byte* data = nullptr;  // null where it may overlap what the step writes
    DType dtype;
    std::uint8_t misaligned;  // the bits of an address that are 0 where it is aligned
    bool aligned = true;
    bool of_rows = false;  // whether the backend has the layout of a gradient of some rows
    std::int8_t rank;

    bool is_like(const Array& grad) const {
      return grad.rank == rank && grad.dtype == dtype && same(shape, grad.shape, grad.rank) &&
             same(strides, grad.strides, grad.rank);
    }
  };
  static_assert(sizeof(Slot) == 64);
  static_assert(std::is_nothrow_move_constructible_v<Tensor>, "slots point to shapes that must stay where they are");

  // The streams of a tensor, except its gradient.
  void set_streams(Tensor& tensor, const Array& param, const std::vector<Array>& states, const Beside& beside) const;
  void check_group(int group) const;
  static const RuleInfo& info(const GroupOptions& options) { return catalog()[static_cast<std::size_t>(options.rule)]; }
  void set_layout(std::size_t tensor, const Array& grad);
  // Sets the backend's layout for a gradient, of some rows if these are given.
  void set_layout(std::size_t tensor, const Array& grad, const RowGradient* rows);
  void prepare_rows();
  void check_buckets(const std::vector<std::int64_t>& buckets) const;
  void run_parts(RunOptions options);
  void set_order(bool in_order);
  bool place_gradient(std::size_t tensor, const Array& grad);
  [[noreturn]] void refuse_shape(std::size_t tensor, const Array& grad) const;
  void find_owned();

  std::unique_ptr<Backend> backend_;
  std::string params_, grads_;
  std::vector<GroupOptions> groups_;
  std::vector<Tensor> tensors_;
  std::vector<Slot> slots_;             // one per tensor
  std::vector<std::byte*> gradients_;   // one per tensor; null: takes no part in the next step
  std::vector<std::size_t> with_rows_;  // the tensors whose gradients are of some rows
  std::vector<Part> parts_;             // empty: the tensors are wholes
  Exchange exchange_;
  Stepped stepped_;
  Ranges owned_;                 // the extents of parameters and states
  bool owned_is_known_ = false;  // whether owned_ is current
  PassOptions asked_{};          // of the gradient pass
  bool has_pass_ = false;        // whether the last step had one
  bool in_order_ = false;        // whether elements are traversed in the order of their indices
};

}  // namespace gradstep::step
