// Takes the steps whose instructions benchmarks/instructions.py counts. It prints the compiler, then a line for each
// counted call: what it was, and of how many elements or tensors.
#include <cstdio>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/threads.h"
#include "step/catalog.h"
#include "step/run.h"
#include "step/stepper.h"

using namespace gradstep;

// Callgrind knows it by name: it counts what happens in here, and writes the count down when it returns.
extern "C" [[gnu::noinline]] void counted(const std::function<void()>& work) { work(); }

namespace {

// The plain form of every rule: no option adds a state.
double plain(const std::string& rule, const std::string& option) {
  if (option == "lr") return 1e-3;
  if (option == "beta1" || option == "rho") return 0.9;
  if (option == "beta2") return 0.999;
  if (option == "momentum") return rule == "rmsprop" ? 0 : 0.9;
  if (option == "eps") return 1e-8;
  return option == "bias_correction";
}

struct alignas(64) CacheLine {
  std::byte bytes[64];
};

// An optimizer of tensors of one size, packed and aligned. All are zeros: no kernel branches on a value.
struct Problem {
  Problem(int rule, DType type, std::int64_t tensors, std::int64_t elements)
      : dtype(type), size(elements), stride(item_size(type)), gradient(zeros()), stepper(rule, "params", "grads") {
    const step::RuleInfo& about = step::catalog()[static_cast<std::size_t>(rule)];
    std::vector<double> options;
    for (const std::string& option : about.options) options.push_back(plain(about.name, option));
    const rules::Key key = step::key_of(rule, options, info(dtype).compute);
    stepper.add_group(options);
    for (std::int64_t tensor = 0; tensor < tensors; ++tensor) {
      std::vector<step::Array> states;
      for (std::size_t s = 0; s < about.states.size(); ++s) {
        states.push_back(step::keeps(key, s) ? zeros() : step::Array{});
      }
      stepper.add_tensor(0, "", zeros(), states);
    }
    // The first step plans. Later ones, which are counted, do not.
    stepper.begin();
    set_gradients();
    stepper.run();
  }

  void set_gradients() {
    for (std::size_t tensor = 0; tensor < stepper.size(); ++tensor) stepper.set_gradient(tensor, gradient);
  }

  step::Array zeros() {
    const auto lines = static_cast<std::size_t>(size * stride) / sizeof(CacheLine) + 1;
    return {storage.emplace_back(lines).data()->bytes, dtype, 1, &size, &stride};
  }

  DType dtype;
  std::int64_t size, stride;
  std::deque<std::vector<CacheLine>> storage;
  step::Array gradient;
  step::Stepper stepper;
};

// Of each pair both are counted and their difference is divided: what a step costs only once drops out.
constexpr std::int64_t kSizes[] = {16384, 49152};
constexpr std::int64_t kTensors[] = {100, 300};

void count(const std::string& what, std::int64_t parts, const std::function<void()>& work) {
  counted(work);
  std::printf("%s %lld\n", what.c_str(), static_cast<long long>(parts));
}

void count_steps(int rule, DType dtype, const std::string& what) {
  for (const std::int64_t size : kSizes) {
    Problem problem(rule, dtype, 1, size);
    count(what + " element", size, [&] { problem.stepper.run(); });
  }
  for (const std::int64_t tensors : kTensors) {
    Problem problem(rule, dtype, tensors, 1);
    count(what + " tensor", tensors, [&] { problem.stepper.run(); });
  }
}

}  // namespace

int main() {
  std::puts(GRADSTEP_COMPILER);
  cpu::set_threads(1);
  for (std::size_t rule = 0; rule < step::catalog().size(); ++rule) {
    for (std::size_t type = 0; type < std::size(kDTypes); ++type) {
      for (const std::string& isa : cpu::supported_isas()) {
        cpu::use_isa(isa);
        count_steps(static_cast<int>(rule), static_cast<DType>(type),
                    step::catalog()[rule].name + ' ' + kDTypes[type].name + ' ' + isa);
      }
    }
  }
  for (const std::int64_t tensors : kTensors) {
    Problem problem(0, DType::kFloat32, tensors, 1);
    problem.stepper.begin();
    count("set_gradient tensor", tensors, [&] { problem.set_gradients(); });
  }
}
