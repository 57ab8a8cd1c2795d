// Complete steps of the C++ core: layouts, 8-bit states, random bits, and the caller's floating-point mode.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/philox.h"
#include "check.h"
#include "cpu/isa.h"
#include "cpu/threads.h"
#include "step/layout.h"
#include "step/on_cpu.h"
#include "step/ranges.h"
#include "step/stepper.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

using namespace gradstep;

namespace {

struct Packed {
  explicit Packed(std::size_t size, float first = 0) : values(size, first), shape{static_cast<std::int64_t>(size)} {}

  step::Array view() { return {reinterpret_cast<std::byte*>(values.data()), DType::kFloat32, 1, shape, &stride}; }

  std::vector<float> values;
  std::int64_t shape[1];
  std::int64_t stride = sizeof(float);
};

// A rule's options in catalog order: the given ones, zero for all others, and neither stochastic rounding nor averages.
std::vector<double> options_of(const char* rule, const std::map<std::string, double>& given) {
  std::vector<double> values;
  for (const std::string& name : step::catalog()[static_cast<std::size_t>(step::rule_number(rule))].options) {
    const auto found = given.find(name);
    const bool none = name == "stochastic_rounding" || name == "clip_value" || name == "ema";
    values.push_back(found != given.end() ? found->second : none ? std::nan("") : 0);
  }
  return values;
}

std::vector<double> adam_options() {
  return options_of("adam", {{"lr", 1e-3}, {"beta1", 0.9}, {"beta2", 0.999}, {"bias_correction", 1}});
}

// Ten steps of Adam with tiny gradients, whose second moments are subnormal. The bits of the gradients' norm are
// appended to the result.
[[maybe_unused]] std::vector<float> train(const std::vector<float>& gradients) {
  const std::size_t size = gradients.size();
  Packed p(size, 1e-38f), g(size), m(size), v(size);
  g.values = gradients;
  step::Stepper stepper(step::on_cpu(), "params", "grads");
  stepper.add_group(step::rule_number("adam"), adam_options());
  stepper.add_tensor(0, "", p.view(), {m.view(), v.view(), step::Array{}});
  stepper.set_gradient_pass({Clipping::kGlobal, 1e-15, false});
  for (int i = 0; i < 10; ++i) {
    stepper.begin();
    stepper.set_gradient(0, g.view());
    stepper.run({});
  }
  const double norm = stepper.gradient_pass().value().norm;
  p.values.insert(p.values.end(), v.values.begin(), v.values.end());
  p.values.resize(p.values.size() + 2);
  std::memcpy(&*(p.values.end() - 2), &norm, sizeof norm);
  return p.values;
}

}  // namespace

#if defined(__x86_64__)
TEST(the_callers_floating_point_mode_changes_no_bit_and_comes_back) {
  constexpr std::size_t kSize = 100'003;
  constexpr unsigned kFlush = 0x8040, kUpwards = 0x4000;
  cpu::set_threads(2);
  cpu::share_all(true);
  std::vector<float> gradients(kSize, 1e-18f);
  for (std::size_t i = 0; i < kSize; ++i) gradients[i] *= 1 + static_cast<float>(i % 7);
  const std::vector<float> expected = train(gradients);
  const float second = expected[2 * kSize - 1];
  CHECK(second > 0 && second < std::numeric_limits<float>::min());  // there are subnormals that flushing would lose
  const unsigned before = _mm_getcsr();
  for (const unsigned mode : {kFlush, kUpwards}) {
    _mm_setcsr(before | mode);
    const std::vector<float> actual = train(gradients);
    const unsigned after = _mm_getcsr();
    _mm_setcsr(before);
    CHECK((after & (kFlush | 0x6000)) == mode);
    CHECK(std::memcmp(actual.data(), expected.data(), actual.size() * sizeof(float)) == 0);
  }
}
#endif

TEST(axes_join_where_every_stream_allows) {
  float storage[64];
  auto* data = reinterpret_cast<std::byte*>(storage);
  const std::int64_t shape[] = {2, 3, 4}, c_order[] = {48, 16, 4}, f_order[] = {4, 8, 24}, gaps[] = {80, 16, 4};
  const step::Array c{data, DType::kFloat32, 3, shape, c_order}, f{data, DType::kFloat32, 3, shape, f_order},
      g{data, DType::kFloat32, 3, shape, gaps}, odd{data + 1, DType::kFloat32, 3, shape, c_order};

  const Layout packed = step::make_layout({&c, &c, nullptr, nullptr, nullptr}, Compute::kFloat, false);
  CHECK(packed.shape == std::vector<std::int64_t>{24} && packed.strides[0].empty() && packed.strides[1].empty());
  const Layout transposed = step::make_layout({&f, &f, nullptr, nullptr, nullptr}, Compute::kFloat, false);
  CHECK(transposed.shape == std::vector<std::int64_t>{24} && transposed.strides[0].empty());
  const Layout mixed = step::make_layout({&c, &f, nullptr, nullptr, nullptr}, Compute::kFloat, false);
  CHECK(mixed.shape == (std::vector<std::int64_t>{2, 3, 4}) && mixed.strides[0].empty() && !mixed.strides[1].empty());
  const Layout gapped = step::make_layout({&g, &c, nullptr, nullptr, nullptr}, Compute::kFloat, false);
  CHECK(gapped.shape == (std::vector<std::int64_t>{2, 12}) && !gapped.strides[0].empty() && gapped.strides[1].empty());
  const Layout misaligned = step::make_layout({&odd, &c, nullptr, nullptr, nullptr}, Compute::kFloat, false);
  CHECK(!misaligned.strides[0].empty() && misaligned.strides[1].empty());
  // Where bits depend on an element's place, the axes stay in the order of the indices.
  const Layout in_order = step::make_layout({&f, &f, nullptr, nullptr, nullptr}, Compute::kFloat, true);
  CHECK(in_order.shape == (std::vector<std::int64_t>{2, 3, 4}) && !in_order.strides[0].empty());
  CHECK(step::make_layout({&c, &c, nullptr, nullptr, nullptr}, Compute::kFloat, true).shape ==
        std::vector<std::int64_t>{24});
}

TEST(a_coded_state_goes_through_a_step) {
  // Code 120 is the scale itself, -120 its negative, 0 zero, and -128 a value that is not finite. Momentum 1/2 halves
  // the values exactly: the scale is halved and the codes stay. The second block has only zeros.
  constexpr std::size_t kSize = 300;
  for (const std::string& isa : cpu::supported_isas()) {
    cpu::use_isa(isa);
    Packed p(kSize, 1), g(kSize);
    std::vector<std::int8_t> codes(kSize, 120);
    std::fill(codes.begin() + 256, codes.end(), std::int8_t{0});
    codes[1] = -120;
    codes[2] = 0;
    codes[255] = -128;
    const std::vector<std::int8_t> before = codes;
    float scales[] = {1, 1};
    const std::int64_t stride = 1;
    const step::Array velocity{
        reinterpret_cast<std::byte*>(codes.data()), DType::kQ8Signed, 1, p.shape, &stride, scales};
    step::Stepper stepper(step::on_cpu(), "params", "grads");
    stepper.add_group(step::rule_number("momentum"), options_of("momentum", {{"lr", 1}, {"momentum", 0.5}}));
    stepper.add_tensor(0, "", p.view(), {velocity});
    stepper.begin();
    CHECK(!stepper.set_gradient(0, g.view()));
    stepper.run({});
    CHECK(codes == before);
    CHECK(scales[0] == 0.5f && scales[1] == 0x1p-111f);
    CHECK(p.values[0] == 0.5f && p.values[1] == 1.5f && p.values[2] == 1 && p.values[254] == 0.5f);
    CHECK(std::isnan(p.values[255]) && p.values[256] == 1 && p.values[299] == 1);
    // A gradient that overlaps the scales overlaps what the step writes.
    const std::int64_t none = 0;
    CHECK(stepper.set_gradient(0, {reinterpret_cast<std::byte*>(scales), DType::kFloat32, 1, p.shape, &none}));
  }
  cpu::use_isa("");
}

// The bindings accept only packed codes, but the core moves items of any size, including one byte.
TEST(codes_with_gaps_step_as_packed_ones_and_keep_what_lies_between) {
  constexpr std::int64_t kSize = 700, kGap = 3;
  const std::vector<double> options = options_of("momentum", {{"lr", 0.5}, {"momentum", 0.9}});
  for (const std::string& isa : cpu::supported_isas()) {
    cpu::use_isa(isa);
    const auto step_codes = [&](std::vector<std::int8_t>& codes, std::int64_t stride, std::vector<float>& scales) {
      Packed p(kSize, 1), g(kSize);
      for (std::int64_t i = 0; i < kSize; ++i) g.values[static_cast<std::size_t>(i)] = static_cast<float>(i % 11 - 5);
      step::Array velocity{reinterpret_cast<std::byte*>(codes.data()), DType::kQ8Signed, 1, p.shape, &stride};
      velocity.scales = scales.data();
      step::Stepper stepper(step::on_cpu(), "params", "grads");
      stepper.add_group(step::rule_number("momentum"), options);
      stepper.add_tensor(0, "", p.view(), {velocity});
      for (int step = 0; step < 3; ++step) {
        stepper.begin();
        stepper.set_gradient(0, g.view());
        stepper.run({});
      }
      return p.values;
    };
    std::vector<std::int8_t> packed(kSize), spread(kSize * kGap, 77);
    std::vector<float> scales_of_packed(3), scales_of_spread(3);
    for (std::int64_t i = 0; i < kSize; ++i) spread[static_cast<std::size_t>(i * kGap)] = 0;
    CHECK(step_codes(packed, 1, scales_of_packed) == step_codes(spread, kGap, scales_of_spread));
    CHECK(scales_of_packed == scales_of_spread);
    bool same = true;
    for (std::int64_t i = 0; i < kSize * kGap; ++i) {
      same = same && spread[static_cast<std::size_t>(i)] ==
                         (i % kGap == 0 ? packed[static_cast<std::size_t>(i / kGap)] : std::int8_t{77});
    }
    CHECK(same);
  }
  cpu::use_isa("");
}

TEST(a_step_may_be_skipped_where_gradients_are_not_finite) {
  constexpr std::size_t kSize = 300;
  Packed p(kSize, 1), g(kSize, 1), m(kSize), v(kSize);
  step::Stepper stepper(step::on_cpu(), "params", "grads");
  stepper.add_group(step::rule_number("nadam"), options_of("nadam", {{"lr", 1e-3}, {"beta1", 0.9}, {"beta2", 0.999}}));
  stepper.add_tensor(0, "", p.view(), {m.view(), v.view()});
  const auto take = [&](float gradient) {
    g.values[7] = gradient;
    stepper.begin();
    stepper.set_gradient(0, g.view());
    stepper.run({});
  };
  take(1);
  CHECK(!stepper.gradient_pass());
  stepper.set_gradient_pass({Clipping::kNone, 0, true});
  take(2);
  CHECK(stepper.gradient_pass().value().norm == std::sqrt(kSize + 3.0));
  const auto before = std::tuple(p.values, m.values, v.values);
  const rules::Clock clock = stepper.state().clocks[0];
  CHECK(stepper.step_count() == 2 && clock.t == 2 && clock.scalars[0] < 1);
  for (const float gradient : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    take(gradient);
    CHECK(!std::isfinite(stepper.gradient_pass().value().norm));
    CHECK(stepper.gradient_pass().value().nonfinite.element == 7);
    CHECK(std::tuple(p.values, m.values, v.values) == before);
    CHECK(stepper.step_count() == 2 && stepper.state().clocks[0].t == 2);
    CHECK(stepper.state().clocks[0].scalars[0] == clock.scalars[0]);
  }
  take(2);
  CHECK(stepper.step_count() == 3 && p.values != std::get<0>(before));
  stepper.set_gradient_pass({});
  take(std::nanf(""));
  CHECK(stepper.step_count() == 4 && std::isnan(p.values[7]) && p.values[8] == p.values[9]);
}

// With registers wider than 16 bytes, each line of the table of combinations has a kernel, and each combination has
// exactly one.
TEST(combinations_have_kernels_where_registers_are_wide) {
  const rules::Key key = step::key_of(step::rule_number("adam"), adam_options(), Compute::kFloat);
  for (const std::string& isa : cpu::supported_isas()) {
    cpu::use_isa(isa);
    const cpu::Kernels& kernels = cpu::find_kernels(key);
    for (const cpu::StoredKernel& one : kernels.stored) {
      CHECK((one.kernel == nullptr) == (isa == "baseline"));
      const auto same = [&](const cpu::StoredKernel& other) { return other.storage == one.storage; };
      CHECK(isa == "baseline" || std::count_if(std::begin(kernels.stored), std::end(kernels.stored), same) == 1);
    }
  }
  cpu::use_isa("");
}

TEST(random_words_are_those_of_the_authors) {
  const auto same = [](FourWords a, FourWords b) {
    return a.w0 == b.w0 && a.w1 == b.w1 && a.w2 == b.w2 && a.w3 == b.w3;
  };
  CHECK(same(philox({0, 0, 0, 0}, 0, 0), {0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48}));
  constexpr std::uint32_t kAll = 0xffffffff;
  CHECK(same(philox({kAll, kAll, kAll, kAll}, kAll, kAll), {0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662}));
  CHECK(same(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0),
             {0x4dfccaba, 0x190a87f0, 0xc47362ba, 0xb6b5242a}));
}

TEST(overlapping_strides_are_seen) {
  float storage[64];
  auto* data = reinterpret_cast<std::byte*>(storage);
  const std::int64_t shape[] = {3, 4};
  const std::int64_t apart[] = {4, 12}, backwards[] = {-16, 4}, window[] = {4, 4}, broadcast[] = {0, 4};
  const auto overlaps = [&](const std::int64_t* strides) {
    return step::overlaps_itself({data, DType::kFloat32, 2, shape, strides});
  };
  CHECK(!overlaps(apart) && !overlaps(backwards) && overlaps(window) && overlaps(broadcast));
  const std::int64_t interlaced[] = {8, 12}, meeting[] = {12, 8}, huge_shape[] = {1 << 28, 1 << 28};
  CHECK(!overlaps(interlaced));  // 3 * 8 == 2 * 12, but 3 is out of range for the first axis
  CHECK(overlaps(meeting));      // 2 * 12 = 3 * 8
  CHECK(step::overlaps_itself({data, DType::kFloat32, 2, huge_shape, window}));
}

TEST(interlaced_arrays_are_surely_apart) {
  float storage[64];
  const std::int64_t shape[] = {8}, stride[] = {16};
  const auto column = [&](int i) {
    return step::Array{reinterpret_cast<std::byte*>(storage + i), DType::kFloat32, 1, shape, stride};
  };
  CHECK(step::surely_apart(column(0), column(1)) && step::surely_apart(column(3), column(1)));
  CHECK(!step::surely_apart(column(0), column(0)) && !step::surely_apart(column(0), column(4)));
  step::Array between = column(0);
  between.data += 2;
  CHECK(!step::surely_apart(between, column(0)) && !step::surely_apart(between, column(1)));
  CHECK(step::surely_apart(between, column(2)));
}

TEST(ranges_meet_where_a_byte_is_shared) {
  const step::Ranges ranges({{30, 40}, {10, 20}, {20, 25}, {50, 50}});
  const auto gap = [&](std::uintptr_t begin, std::uintptr_t end) {
    const step::Extent found = ranges.gap_around({begin, end});
    return std::pair(found.begin, found.end);
  };
  CHECK(gap(0, 11).second == 0 && gap(24, 26).second == 0 && gap(0, 100).second == 0 && gap(35, 36).second == 0);
  CHECK(gap(0, 10) == std::pair(std::uintptr_t{0}, std::uintptr_t{10}));
  CHECK(gap(26, 27) == std::pair(std::uintptr_t{25}, std::uintptr_t{30}) && gap(25, 30) == gap(26, 27));
  CHECK(gap(40, 60) == std::pair(std::uintptr_t{40}, UINTPTR_MAX));
}

int main() { return check::run_tests(); }
