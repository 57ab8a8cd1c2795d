#include "step/on_cpu.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <exception>
#include <iterator>
#include <memory>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "base/ieee_mode.h"
#include "cpu/fork.h"
#include "cpu/isa.h"
#include "cpu/panel.h"
#include "cpu/pool.h"
#include "cpu/prefetch_choice.h"
#include "cpu/run.h"
#include "cpu/threads.h"
#include "cpu/tuning.h"
#include "exec/norm.h"
#include "step/norm.h"
#include "step/plan.h"

namespace gradstep::step {
namespace {

// Detects whether steps follow one another so fast that a worker woken for one is still awake for the next. All
// optimizers and threads share it. It affects times, not results.
class ConsecutiveSteps {
 public:
  // Called when a step begins. Returns true if this step and the one before each began within kSpinMicroseconds of the
  // end of another. Two in a row are required because two optimizers may be stepped together now and then.
  bool begin() {
    const bool soon =
        now() - ended_.load(std::memory_order_relaxed) < std::chrono::microseconds(cpu::kSpinMicroseconds);
    const int in_a_row = soon ? std::min(in_a_row_.load(std::memory_order_relaxed) + 1, 2) : 0;
    in_a_row_.store(in_a_row, std::memory_order_relaxed);
    return in_a_row == 2;
  }
  void end() { ended_.store(now(), std::memory_order_relaxed); }

 private:
  using Time = std::chrono::steady_clock::duration;
  static Time now() { return std::chrono::steady_clock::now().time_since_epoch(); }

  std::atomic<Time> ended_{Time::min() / 2};
  std::atomic<int> in_a_row_{0};
};

ConsecutiveSteps consecutive_steps;

// The last update that a task ran and its kernels: most tasks have only one update.
struct KernelCache {
  const PreparedUpdate* update = nullptr;
  const cpu::Kernels* kernels = nullptr;
};

// Calls visit(job, piece, cache) on `threads` threads for every piece of buckets [first, last) of a plan whose tensor
// takes part.
template <class Visit>
void for_each_piece(const Plan& plan, std::size_t first, std::size_t last, const TensorJob* jobs, int threads,
                    bool wake, const Visit& visit) noexcept {
  struct Step {
    const Plan& plan;
    const std::size_t* tasks;
    const TensorJob* jobs;
    const Visit& visit;
  } step{plan, &plan.tasks[plan.buckets[first]], jobs, visit};
  const auto task = [](void* context, std::size_t index) {
    const IeeeMode ieee;
    const auto& [the_plan, tasks, the_jobs, the_visit] = *static_cast<const Step*>(context);
    KernelCache cache;
    for (std::size_t i = tasks[index]; i < tasks[index + 1]; ++i) {
      const Piece& piece = the_plan.pieces[i];
      const TensorJob& job = the_jobs[piece.tensor];
      if (job.update != nullptr) the_visit(job, piece, cache);
    }
  };
  cpu::parallel_for(plan.buckets[last] - plan.buckets[first], threads, wake, task, &step);
}

int threads_for(std::int64_t bytes) {
  return cpu::shares_all() || bytes >= cpu::kBytesWorthSharing ? cpu::threads() : 1;
}
bool wakes_for(std::int64_t bytes) { return cpu::shares_all() || bytes >= cpu::kBytesWorthWaking; }

// Writes only changed values, so that the cache lines remain valid in the workers' caches.
template <class T>
void assign_if_changed(T& kept, T value) {
  if (kept != value) kept = value;
}

bool same(const rules::Clock& a, const rules::Clock& b) {
  return a.t == b.t && a.ema_product == b.ema_product &&
         std::equal(std::begin(a.scalars), std::end(a.scalars), std::begin(b.scalars));
}

// One job per tensor, and the layouts of those that kernels cannot work on where they lie.
struct Jobs {
  std::vector<TensorJob> jobs;
  std::vector<std::unique_ptr<Layout>> layouts;
  int blocked = 0;  // layouts with blocks

  void reserve(std::size_t tensors) {
    jobs.reserve(tensors);
    layouts.reserve(tensors);
  }

  void add() {
    jobs.emplace_back();
    layouts.emplace_back();
  }

  void set_layout(std::size_t tensor, Layout layout) {
    const bool had = layouts[tensor] != nullptr && layouts[tensor]->blocks.axis >= 0;
    cpu::set_blocks(layout);
    blocked += static_cast<int>(layout.blocks.axis >= 0) - static_cast<int>(had);
    layouts[tensor] = layout.plain() ? nullptr : std::make_unique<Layout>(std::move(layout));
    assign_if_changed<const Layout*>(jobs[tensor].layout, layouts[tensor].get());
  }
};

class OnCpu : public Backend {
 public:
  OnCpu() {
    for (const Compute compute : {Compute::kFloat, Compute::kDouble}) {
      norm_updates_[static_cast<int>(compute)].key.compute = compute;
    }
  }

  void set_options(std::size_t group, const GroupOptions& options) override {
    groups_.resize(std::max(groups_.size(), group + 1));
    groups_[group] = options;
  }

  void set_gradient_pass(const PassOptions& options) override { asked_ = options; }

  void reserve(std::size_t tensors) override {
    tensors_.reserve(tensors);
    steps_.reserve(tensors);
    norms_.reserve(tensors);
  }

  void add_tensor(const TensorInfo& info, const rules::Clock& clock) override {
    tensors_.push_back({clock, info});
    steps_.add();
    norms_.add();
    plan_ = {};
  }

  void set_layout(std::size_t tensor, std::byte* const* streams, Layout layout, Layout gradient,
                  std::int64_t size) override {
    if (tensors_[tensor].info.size != size) {
      tensors_[tensor].info.size = size;
      plan_ = {};
    }
    for (int s = 0; s < kKernelStreams; ++s) {
      if (s != kGradient) assign_if_changed(steps_.jobs[tensor].streams[s], streams[s]);
    }
    steps_.set_layout(tensor, std::move(layout));
    norms_.set_layout(tensor, std::move(gradient));
  }

  void run(std::byte* const* gradients, const RunOptions& options) override {
    std::optional<cpu::NoFork> whole{std::in_place};
    finish_plan();
    measured_.clear();
    if (options.measures) prepare_measures();
    if (!asked_.asks()) {
      pass_ = no_pass_for(options.grad_scale);
    } else if (options.squares != nullptr) {
      check_squares(*options.squares);
      const IeeeMode ieee;
      pass_ = add_up(*options.squares, first_chunk_of_wholes_, asked_, options.grad_scale);
    } else {
      pass_ = pass_over(gradients, asked_, options.grad_scale);
    }
    if (pass_.skip) {
      if (options.clears) clear(gradients);
      return;
    }
    prepared_.clear();
    std::int64_t bytes = 0;
    const Prepared* prepared = nullptr;
    TensorJob* job = steps_.jobs.data();
    const double* factor = asked_.clipping == Clipping::kPerTensor ? of_tensors_.data() : nullptr;
    for (Tensor& tensor : tensors_) {
      std::byte* const gradient = *gradients++;
      const double scale = factor == nullptr ? pass_.factor : *factor++;
      if (gradient != nullptr) {
        if (prepared == nullptr || !prepared->fits(tensor, scale)) prepared = &prepare(tensor, scale);
        assign_if_changed(job->streams[kGradient], gradient);
        tensor.clock = prepared->after;
        bytes += tensor.info.size * prepared->bytes;
      }
      assign_if_changed<const PreparedUpdate*>(job->update, gradient == nullptr ? nullptr : prepared);
      ++job;
    }
    if (steps_.blocked != 0) cpu::begin_panels();
    const int threads = threads_for(bytes);
    const bool awake = threads > 1 && consecutive_steps.begin();
    const bool wakes = awake || wakes_for(bytes);
    std::exception_ptr failed;
    const auto update = [&](const auto& run) {
      const auto visit = [&run, prefetches = cpu::prefetches()](const TensorJob& of, const Piece& piece,
                                                                KernelCache& cache) {
        if (of.update != cache.update) cache = {of.update, &cpu::find_kernels(of.update->key)};
        run(of, *cache.kernels, piece, prefetches);
      };
      if (options.stepped == nullptr) {
        for_each_piece(plan_, 0, plan_.buckets.size() - 1, steps_.jobs.data(), threads, wakes, visit);
        return;
      }
      for (std::size_t bucket = 0; bucket + 1 < plan_.buckets.size(); ++bucket) {
        for_each_piece(plan_, bucket, bucket + 1, steps_.jobs.data(), threads, wakes, visit);
        if (failed) continue;
        whole.reset();  // it may wait for the GIL, which a thread that forks holds
        try {
          (*options.stepped)(bucket + 1);
        } catch (...) {
          failed = std::current_exception();
        }
        whole.emplace();
      }
    };
    if (options.measures) {
      update([&](const TensorJob& of, const cpu::Kernels& kernels, const Piece& piece, bool prefetches) {
        const std::size_t first = plan_.first_chunk[piece.tensor];
        const cpu::ChunkSums to{&norm_sums_[0][first], &norm_sums_[1][first], &norm_sums_[2][first]};
        cpu::run_and_measure(of, kernels, piece.begin, piece.end, prefetches, options.clears, to);
      });
      const IeeeMode ieee;
      add_up_norms(options.grad_scale);
    } else if (options.clears) {
      update([](const TensorJob& of, const cpu::Kernels& kernels, const Piece& piece, bool prefetches) {
        cpu::run_and_clear(of, kernels, piece.begin, piece.end, prefetches);
      });
    } else {
      update([](const TensorJob& of, const cpu::Kernels& kernels, const Piece& piece, bool prefetches) {
        cpu::run(of, kernels, piece.begin, piece.end, prefetches);
      });
    }
    for (std::size_t i = 0; options.clears && steps_.blocked != 0 && i < tensors_.size(); ++i) {
      if (has_blocks(i) && steps_.jobs[i].update != nullptr) {
        cpu::clear_gradient(steps_.jobs[i], 0, tensors_[i].info.size);
      }
    }
    if (threads > 1) consecutive_steps.end();
    ++taken_;
    if (failed) std::rethrow_exception(failed);
  }

  GradientPass gradient_pass() override { return pass_; }

  std::vector<TensorNorms> norms() override { return measured_; }

  double norm(std::byte* const* gradients) override {
    finish_plan();
    return pass_over(gradients, {}, 1).norm;
  }

  void set_parts(std::vector<Part> parts, std::vector<std::int64_t> buckets) override {
    first_chunk_of_wholes_.assign(1, 0);
    for (const Part& part : parts) {
      first_chunk_of_wholes_.push_back(first_chunk_of_wholes_.back() + static_cast<std::size_t>(chunks_of(part.whole)));
    }
    parts_ = std::move(parts);
    buckets_ = std::move(buckets);
    plan_ = {};
  }

  Squares squares(std::byte* const* gradients) override {
    const cpu::NoFork whole;
    finish_plan();
    sum_chunks(gradients);
    Squares all = squares_;
    if (all.nonfinite.exists() && !parts_.empty()) all.nonfinite.element += parts_[all.nonfinite.tensor].first;
    return all;
  }

  std::shared_ptr<std::byte> allocate(std::size_t bytes) override {
    return {static_cast<std::byte*>(::operator new(bytes)), [](std::byte* memory) { ::operator delete(memory); }};
  }

  // Threads share the rows.
  void sum_rows(const Array& values, Compute compute, const RowSums& sums, std::int64_t count) override {
    const Layout layout = norm_layout(values, compute);
    PreparedUpdate update;
    update.key.compute = compute;
    TensorJob job;
    job.update = &update;
    job.layout = layout.plain() ? nullptr : &layout;
    job.streams[kGradient] = values.data;
    struct Work {
      const TensorJob& job;
      const RowSums& sums;
      std::int64_t grain, count;
    } work{job, sums, std::max<std::int64_t>(1, cpu::grain(size_of(values)) / std::max<std::int64_t>(1, sums.length)),
           count};
    const std::int64_t bytes = 2 * size_of(values) * gradstep::size_of(compute);
    const auto task = [](void* context, std::size_t index) {
      const IeeeMode ieee;
      const Work& of = *static_cast<const Work*>(context);
      const std::int64_t begin = static_cast<std::int64_t>(index) * of.grain;
      cpu::sum_rows(of.job, of.sums, begin, std::min(begin + of.grain, of.count));
    };
    const auto tasks = static_cast<std::size_t>((count + work.grain - 1) / work.grain);
    cpu::parallel_for(tasks, threads_for(bytes), wakes_for(bytes), task, &work);
  }

  StepState state() override {
    StepState state{taken_, {}};
    for (const Tensor& tensor : tensors_) state.clocks.push_back(tensor.clock);
    return state;
  }

  void set_state(const StepState& state) override {
    taken_ = state.taken;
    for (std::size_t i = 0; i < tensors_.size(); ++i) tensors_[i].clock = state.clocks[i];
  }

  std::int64_t step_count() override { return taken_; }

  bool is_captured() const override { return false; }

 private:
  struct Tensor {
    rules::Clock clock;
    TensorInfo info;
  };

  // The update of one step, shared by the tensors of a group with equal clocks.
  struct Prepared : PreparedUpdate {
    int group;
    std::int64_t bytes;  // read and written per element
    double factor;       // of the gradients
    rules::Clock before, after;

    bool fits(const Tensor& tensor, double asked_factor) const {
      return group == tensor.info.group && factor == asked_factor && key.compute == tensor.info.compute &&
             same(before, tensor.clock);
    }
  };

  void finish_plan() {
    if (!plan_.tasks.empty()) return;
    prepared_.reserve(tensors_.size());  // jobs point into it
    std::vector<std::int64_t> sizes;
    for (const Tensor& tensor : tensors_) sizes.push_back(tensor.info.size);
    const std::int64_t elements = std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0});
    plan_ = make_plan(sizes.data(), sizes.size(), cpu::grain(elements), buckets_);
  }

  // Returns the tensor's update. Tensors of a group usually share it, so the last few are searched before another is
  // made.
  const Prepared& prepare(const Tensor& tensor, double factor) {
    constexpr std::size_t kLookBack = 4;
    const auto& [clock, info] = tensor;
    for (std::size_t i = prepared_.size(); i-- > 0 && i + kLookBack >= prepared_.size();) {
      if (prepared_[i].fits(tensor, factor)) return prepared_[i];
    }
    const GroupOptions& options = groups_[static_cast<std::size_t>(info.group)];
    rules::Clock after = clock;
    ++after.t;
    const PreparedUpdate update = make_update(options.key(info.compute), options.values, after, factor);
    prepared_.push_back({update, info.group, bytes_moved(update.key), factor, clock, after});
    return prepared_.back();
  }

  [[gnu::noinline]] void prepare_measures() {
    for (std::vector<double>& of_chunks : norm_sums_) of_chunks.resize(plan_.first_chunk.back());
    measured_.reserve(tensors_.size());
  }

  bool has_blocks(std::size_t tensor) const {
    return steps_.layouts[tensor] != nullptr && steps_.layouts[tensor]->blocks.axis >= 0;
  }

  // Sets gradients to zero. The gradient pass was taken.
  void clear(std::byte* const* gradients) {
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      if (gradients[i] != nullptr) cpu::clear_gradient(norms_.jobs[i], 0, tensors_[i].info.size);
    }
  }

  void check_squares(const Squares& squares) const {
    const std::size_t chunks = first_chunk_of_wholes_.back();
    if (squares.of_chunks.size() == chunks &&
        (!squares.nonfinite.exists() || squares.nonfinite.tensor < tensors_.size())) {
      return;
    }
    throw std::invalid_argument("there must be a sum for each of the " + std::to_string(chunks) +
                                " chunks of the wholes, and a tensor of theirs");
  }

  GradientPass pass_over(std::byte* const* gradients, const PassOptions& asked, double grad_scale) {
    sum_chunks(gradients);
    const IeeeMode ieee;
    return add_up(squares_, plan_.first_chunk, asked, grad_scale);
  }

  void sum_chunks(std::byte* const* gradients) {
    squares_.of_chunks.resize(plan_.first_chunk.back());
    std::int64_t bytes = 0;
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      const auto& [size, group, compute] = tensors_[i].info;
      const bool active = gradients[i] != nullptr;
      assign_if_changed<const PreparedUpdate*>(norms_.jobs[i].update,
                                               active ? &norm_updates_[static_cast<int>(compute)] : nullptr);
      if (!active) {
        const auto first = squares_.of_chunks.begin();
        std::fill(first + static_cast<std::ptrdiff_t>(plan_.first_chunk[i]),
                  first + static_cast<std::ptrdiff_t>(plan_.first_chunk[i + 1]), 0.0);
        continue;
      }
      assign_if_changed(norms_.jobs[i].streams[kGradient], gradients[i]);
      bytes += size * size_of(compute);
    }
    const auto visit = [&, prefetches = cpu::prefetches()](const TensorJob& job, const Piece& piece, KernelCache&) {
      double* const to = &squares_.of_chunks[plan_.first_chunk[piece.tensor]];
      cpu::each_part(job, piece.begin, piece.end, [&](std::int64_t begin, std::int64_t end) {
        for (; begin < end; begin += kChunk) {
          to[begin / kChunk] = cpu::sum_of_squares(job, begin, std::min(begin + kChunk, end), prefetches);
        }
      });
    };
    if (norms_.blocked != 0) cpu::begin_panels();
    for_each_piece(plan_, 0, plan_.buckets.size() - 1, norms_.jobs.data(), threads_for(bytes), wakes_for(bytes), visit);
    squares_.nonfinite = first_nonfinite(gradients);
  }

  // Separate functions, as is all arithmetic that depends on the floating-point mode.
  [[gnu::noinline]] void add_up_norms(double grad_scale) {
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      const std::size_t first = plan_.first_chunk[i], count = plan_.first_chunk[i + 1] - first;
      const auto of = [&](int k) { return sum(norm_sums_[k].data() + first, count); };
      measured_.push_back(steps_.jobs[i].update == nullptr ? TensorNorms{}
                                                           : evaluate_norms(of(0), of(1), of(2), grad_scale));
    }
  }

  [[gnu::noinline]] GradientPass add_up(const Squares& squares, const std::vector<std::size_t>& first_chunk,
                                        const PassOptions& asked, double grad_scale) {
    of_tensors_.resize(tensors_.size());
    double largest = 0;
    for (std::size_t i = 0; i < of_tensors_.size(); ++i) {
      of_tensors_[i] = sum(squares.of_chunks.data() + first_chunk[i], first_chunk[i + 1] - first_chunk[i]);
      largest = larger_sum(largest, of_tensors_[i]);
    }
    const double all = sum(of_tensors_.data(), of_tensors_.size());
    const GradientPass pass = evaluate_pass(all, largest, squares.nonfinite, asked, grad_scale);
    for (double& of_tensor : of_tensors_) of_tensor = pass.factor_of(of_tensor, asked, grad_scale);
    return pass;
  }
  [[gnu::noinline]] static GradientPass compute_no_pass(double grad_scale) { return no_pass(grad_scale); }
  static GradientPass no_pass_for(double grad_scale) {
    if (grad_scale == 1) return no_pass(1);
    const IeeeMode ieee;
    return compute_no_pass(grad_scale);
  }

  // The index in the whole tensor of an element of a gradient of `size` elements.
  static std::int64_t place_of(const Layout* layout, std::int64_t size, std::int64_t element) {
    if (layout == nullptr || layout->rows == nullptr) return element;
    const std::int64_t length = size / layout->shape[0];
    return layout->rows[element / length] * length + element % length;
  }

  // Only chunks whose sum is not finite are searched: a sum of finite float64 squares may overflow.
  Position first_nonfinite(std::byte* const* gradients) const {
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      if (gradients[i] == nullptr) continue;
      const std::int64_t size = tensors_[i].info.size;
      for (std::int64_t begin = 0; begin < size; begin += kChunk) {
        if (is_finite(squares_.of_chunks[plan_.first_chunk[i] + static_cast<std::size_t>(begin / kChunk)])) continue;
        const std::int64_t end = std::min(begin + kChunk, size);
        const std::int64_t found = cpu::first_nonfinite(norms_.jobs[i], begin, end);
        if (found != end) return {static_cast<std::uint32_t>(i), place_of(steps_.jobs[i].layout, size, found)};
      }
    }
    return kNowhere;
  }

  std::vector<GroupOptions> groups_;
  std::vector<Tensor> tensors_;
  Jobs steps_, norms_;  // of the update and of the gradient pass
  Plan plan_;           // empty: to be made by the next run
  std::int64_t taken_ = 0;
  std::vector<Prepared> prepared_;
  PassOptions asked_{};
  GradientPass pass_ = no_pass(1);
  PreparedUpdate norm_updates_[2];  // by compute type; only key.compute is used
  Squares squares_;
  std::vector<double> of_tensors_;  // sums of squares; after the pass the tensors' factors
  std::vector<Part> parts_;
  std::vector<std::int64_t> buckets_;  // the elements of each; empty: there is one
  std::vector<std::size_t> first_chunk_of_wholes_;
  std::vector<TensorNorms> measured_;  // of the last run; empty if it measured none
  std::vector<double> norm_sums_[3];   // of chunks, by the norms of TensorNorms
};

}  // namespace

std::unique_ptr<Backend> on_cpu() { return std::make_unique<OnCpu>(); }

}  // namespace gradstep::step
