// Runs the steps whose instructions benchmarks/instructions.py counts. Prints the compiler, then one line per counted
// call: its name and its number of elements or tensors.
#include <cstdio>
#include <deque>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/prefetch_choice.h"
#include "cpu/threads.h"
#include "step/catalog.h"
#include "step/on_cpu.h"
#include "step/stepper.h"

using namespace gradstep;

// Callgrind is given this function's name: it counts the instructions executed in it and dumps the count when it
// returns.
extern "C" [[gnu::noinline]] void counted(const std::function<void()>& work) { work(); }

namespace {

// Options of the plain form of each rule: none adds a state.
double plain(const std::string& rule, const std::string& option) {
  if (option == "lr") return 1e-3;
  if (option == "beta1" || option == "rho") return 0.9;
  if (option == "beta2") return 0.999;
  if (option == "momentum") return rule == "rmsprop" ? 0 : 0.9;
  if (option == "eps") return 1e-8;
  const bool none = option == "stochastic_rounding" || option == "clip_value" || option == "ema";
  if (none) return std::numeric_limits<double>::quiet_NaN();
  return option == "bias_correction";
}

struct alignas(64) CacheLine {
  std::byte bytes[64];
};

// The storage types; for q8 the rule determines which states are signed.
struct Storage {
  std::string name;
  DType values, states;
};

// An optimizer of tensors of one size, packed and aligned. All values are zero: no kernel branches on a value.
struct Problem {
  Problem(int rule, const Storage& storage, std::int64_t tensors, std::int64_t elements)
      : size(elements), gradient(zeros(storage.values)), stepper(step::on_cpu(), "params", "grads") {
    const step::RuleInfo& about = step::catalog()[static_cast<std::size_t>(rule)];
    std::vector<double> options;
    for (const std::string& option : about.options) options.push_back(plain(about.name, option));
    const rules::Key key = step::key_of(rule, options, compute_of(storage.values));
    stepper.add_group(rule, options);
    for (std::int64_t tensor = 0; tensor < tensors; ++tensor) {
      std::vector<step::Array> states;
      for (std::size_t s = 0; s < about.states.size(); ++s) {
        const bool coded = has_scales(storage.states);
        const DType dtype = coded && about.states[s].non_negative ? DType::kQ8Unsigned : storage.states;
        states.push_back(step::keeps(key, s) ? zeros(dtype) : step::Array{});
      }
      stepper.add_tensor(0, "", zeros(storage.values), states);
    }
    // The first step makes the plan; the later ones, which are counted, do not.
    stepper.begin();
    set_gradients();
    stepper.run({});
  }

  void set_gradients() {
    for (std::size_t tensor = 0; tensor < stepper.size(); ++tensor) stepper.set_gradient(tensor, gradient);
  }

  step::Array zeros(DType dtype) {
    const std::int64_t& stride = strides.emplace_back(item_size(dtype));
    step::Array array{memory(size * stride), dtype, 1, &size, &stride};
    if (has_scales(dtype)) array.scales = reinterpret_cast<float*>(memory((size / kBlock + 1) * sizeof(float)));
    return array;
  }

  std::byte* memory(std::int64_t bytes) {
    return lines.emplace_back(static_cast<std::size_t>(bytes) / sizeof(CacheLine) + 1).data()->bytes;
  }

  std::int64_t size;
  std::deque<std::int64_t> strides;
  std::deque<std::vector<CacheLine>> lines;
  step::Array gradient;
  step::Stepper stepper;
};

// Both sizes of a pair are counted and their difference is divided, which cancels the constant cost of a step.
constexpr std::int64_t kSizes[] = {16384, 49152};
constexpr std::int64_t kTensors[] = {100, 300};

void count(const std::string& what, std::int64_t parts, const std::function<void()>& work) {
  counted(work);
  std::printf("%s %lld\n", what.c_str(), static_cast<long long>(parts));
}

void count_steps(std::size_t rule, const Storage& storage) {
  const std::string what = step::catalog()[rule].name + ' ' + storage.name + ' ' + cpu::isa();
  for (const std::int64_t size : kSizes) {
    Problem problem(static_cast<int>(rule), storage, 1, size);
    count(what + " element", size, [&] { problem.stepper.run({}); });
  }
  for (const std::int64_t tensors : kTensors) {
    Problem problem(static_cast<int>(rule), storage, tensors, 1);
    count(what + " tensor", tensors, [&] { problem.stepper.run({}); });
  }
}

}  // namespace

int main() {
  const Storage native[] = {{"float32", DType::kFloat32, DType::kFloat32},
                            {"float64", DType::kFloat64, DType::kFloat64}};
  const Storage narrow[] = {{"float16", DType::kFloat16, DType::kFloat32},
                            {"bfloat16", DType::kBFloat16, DType::kFloat32},
                            {"float32+bfloat16", DType::kFloat32, DType::kBFloat16},
                            {"float32+q8", DType::kFloat32, DType::kQ8Signed}};
  std::puts(GRADSTEP_COMPILER);
  cpu::set_threads(1);
  cpu::use_prefetch("off");  // the same on every machine
  for (const std::string& isa : cpu::supported_isas()) {
    cpu::use_isa(isa);
    for (std::size_t rule = 0; rule < step::catalog().size(); ++rule) {
      for (const Storage& storage : native) count_steps(rule, storage);
      if (step::catalog()[rule].name != "adam") continue;  // codecs do not depend on the rule
      for (const Storage& storage : narrow) count_steps(rule, storage);
    }
  }
  for (const std::int64_t tensors : kTensors) {
    Problem problem(0, native[0], tensors, 1);
    problem.stepper.begin();
    count("set_gradient tensor", tensors, [&] { problem.set_gradients(); });
  }
}
