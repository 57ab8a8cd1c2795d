// The planner: for all sizes, every element is in one piece, in order, in tasks of bounded size that are cut only at
// chunks.
#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/tuning.h"
#include "plan_checks.h"
#include "step/plan.h"

namespace {

using gradstep::kBlock;
using gradstep::kChunk;
using gradstep::step::make_plan;
using plan_checks::kMax;
using plan_checks::Piece;
using plan_checks::Plan;
using plan_checks::Sizes;

static_assert(kChunk == 4096 && kChunk % kBlock == 0);

Plan plan_of(const Sizes& sizes, std::int64_t grain) { return make_plan(sizes.data(), sizes.size(), grain); }

void check_plan(const Sizes& sizes, std::int64_t grain) {
  const Plan plan = plan_of(sizes, grain);
  const bool good = plan_checks::holds(plan, sizes, grain);
  CHECK(good);
  if (good) return;
  std::fprintf(stderr, "  grain %lld, sizes", static_cast<long long>(grain));
  for (const std::int64_t size : sizes) std::fprintf(stderr, " %lld", static_cast<long long>(size));
  std::fprintf(stderr, "\n");
}

// 2^k times 1, 2 and 3, each minus one, exact and plus one; and 0.
Sizes boundaries(int from, int to) {
  Sizes sizes{0};
  for (int k = from; k <= to; ++k) {
    for (std::int64_t times = 1; times <= 3; ++times) {
      for (std::int64_t off = -1; off <= 1; ++off) sizes.push_back((times << k) + off);
    }
  }
  return sizes;
}

TEST(nothing_to_do) {
  for (const Sizes& sizes : {Sizes{}, Sizes{0}, Sizes{0, 0, 0}}) {
    const Plan plan = plan_of(sizes, 1024);
    CHECK(plan.pieces.empty());
    CHECK(plan.tasks == std::vector<std::size_t>{0});
    CHECK(plan.task_count() == 0);
    CHECK(plan.first_chunk == std::vector<std::size_t>(sizes.size() + 1, 0));
  }
  CHECK(make_plan(nullptr, 0, 1024).tasks.size() == 1);
}

TEST(one_tensor_at_the_boundaries) {
  for (const std::int64_t size : boundaries(0, 18)) {
    for (const std::int64_t grain : {kChunk, 2 * kChunk, 3 * kChunk, 16 * kChunk, 64 * kChunk}) {
      check_plan({size}, grain);
      const std::int64_t tasks = size / grain + (size % grain != 0);
      CHECK(plan_of({size}, grain).task_count() == static_cast<std::size_t>(tasks));
    }
  }
}

TEST(two_tensors_at_the_boundaries) {
  const Sizes sizes = boundaries(4, 15);
  for (const std::int64_t a : sizes) {
    for (const std::int64_t b : sizes) {
      for (const std::int64_t grain : {kChunk, 4 * kChunk}) {
        check_plan({a, b}, grain);
        check_plan({a, 0, b, 0}, grain);  // empty tensors in the middle and at the end
      }
    }
  }
}

TEST(a_worked_example) {
  // 100 elements leave room for three chunks of the large tensor, whose last piece shares a task with the next tensor.
  const Plan plan = plan_of({100, 0, 12 * kChunk, 24}, 4 * kChunk - 96);  // rounded up to 4 chunks
  const std::vector<Piece> expected{{0, 0, 100},
                                    {2, 0, 3 * kChunk},
                                    {2, 3 * kChunk, 7 * kChunk},
                                    {2, 7 * kChunk, 11 * kChunk},
                                    {2, 11 * kChunk, 12 * kChunk},
                                    {3, 0, 24}};
  CHECK(plan.pieces.size() == expected.size());
  for (std::size_t p = 0; p < std::min(expected.size(), plan.pieces.size()); ++p) {
    CHECK(plan.pieces[p].tensor == expected[p].tensor);
    CHECK(plan.pieces[p].begin == expected[p].begin);
    CHECK(plan.pieces[p].end == expected[p].end);
  }
  CHECK((plan.tasks == std::vector<std::size_t>{0, 2, 3, 4, 6}));
  CHECK((plan.first_chunk == std::vector<std::size_t>{0, 1, 1, 13, 14}));
}

TEST(small_tensors_share_a_task) {
  const Plan plan = plan_of(Sizes(1000, 10), 4096);
  check_plan(Sizes(1000, 10), 4096);
  CHECK(plan.pieces.size() == 1000);
  CHECK(plan.task_count() == 3);                         // 409 tensors fit in 4096, and are not cut
  CHECK(plan_of({100, 3996}, 4096).pieces.size() == 2);  // a tensor that just fits is not cut either
  // A tensor that does not fit begins the next task if less than a chunk of it would fit.
  CHECK(plan_of({3000, 3000}, 4096).pieces.size() == 2);
}

TEST(random_sizes) {
  std::mt19937_64 random(20240607);
  const auto below = [&random](std::int64_t n) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n));
  };
  for (int round = 0; round < 3000; ++round) {
    Sizes sizes(static_cast<std::size_t>(below(40)));
    for (std::int64_t& size : sizes) size = below(5) == 0 ? 0 : below(std::int64_t{1} << below(18));
    check_plan(sizes, 1 + below(1 << 17));
  }
}

// Buckets that end at the end of a tensor or at a chunk, some of them empty.
TEST(buckets) {
  std::mt19937_64 random(20241128);
  const auto below = [&random](std::int64_t n) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n));
  };
  for (int round = 0; round < 3000; ++round) {
    Sizes sizes(static_cast<std::size_t>(below(12))), buckets(1);
    for (std::int64_t& size : sizes) {
      size = below(5) == 0 ? 0 : below(std::int64_t{1} << below(18));
      for (std::int64_t begin = 0; begin < size;) {
        while (below(3) == 0) buckets.push_back(0);
        const std::int64_t take = std::min(size - begin, (1 + below(9)) * kChunk);
        buckets.back() += take;
        begin += take;
      }
    }
    const std::int64_t grain = 1 + below(1 << 16);
    const Plan plan = make_plan(sizes.data(), sizes.size(), grain, buckets);
    CHECK(plan_checks::covers(plan, sizes));
    CHECK(plan_checks::cuts_only_between_tasks(plan));
    CHECK(plan_checks::has_buckets(plan, buckets));
    for (std::size_t k = 0; k < plan.task_count(); ++k) {
      std::int64_t elements = 0;
      for (std::size_t p = plan.tasks[k]; p < plan.tasks[k + 1]; ++p) {
        elements += plan.pieces[p].end - plan.pieces[p].begin;
      }
      CHECK(elements > 0 && elements <= static_cast<std::int64_t>(plan_checks::effective(grain)));
    }
    const Sizes all{std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0})};
    const Plan one = make_plan(sizes.data(), sizes.size(), grain, all);
    CHECK(one.tasks == plan_of(sizes, grain).tasks && plan_checks::has_buckets(one, all));
  }
}

TEST(any_grain) {
  const Sizes sizes{1000, 1, 4095, 4096, 4097, 70000};
  for (const std::int64_t grain : {-kMax - 1, -kMax, std::int64_t{-1}, std::int64_t{0}, std::int64_t{1}, kChunk - 1,
                                   kChunk, kChunk + 1, kMax - kChunk, kMax - kChunk + 1, kMax - 1, kMax}) {
    check_plan(sizes, grain);
  }
  CHECK(plan_of(sizes, kMax).task_count() == 1);
  CHECK(plan_of(sizes, 0).pieces.size() == plan_of(sizes, kChunk).pieces.size());
}

TEST(beyond_32_bits) {
  constexpr std::int64_t k32 = std::int64_t{1} << 32, k40 = std::int64_t{1} << 40;
  for (const std::int64_t off : {-1, 0, 1}) {
    check_plan({k32 + off}, k32);
    check_plan({k32 + off, 7, k32 + off}, k32 / 16);
    check_plan({5, k40 + off, 0}, k32);
  }
  const Plan plan = plan_of({k40}, k32);
  CHECK(plan.task_count() == 256);
  CHECK(plan.pieces[255].begin == 255 * k32);
  CHECK(plan.pieces[255].end == k40);
}

TEST(near_the_last_integer) {
  // Sizes whose sum exceeds 64 bits, and cuts within a chunk of the end.
  const Sizes sizes{kMax, kMax, kMax - 1, 1, kMax - 4095, 5000, kMax};
  for (const std::int64_t grain : {kMax, kMax - kChunk, kMax / 2, kMax / 1000, std::int64_t{1} << 55}) {
    check_plan(sizes, grain);
  }
}

TEST(tasks_grow_with_the_step) {
  using gradstep::cpu::grain;
  CHECK(grain(0) == 4096 && grain(1 << 20) == 4096 && grain((1 << 20) + 256) == 4097);
  CHECK(grain(std::int64_t{1} << 24) == 65536 && grain(std::int64_t{1} << 40) == 65536);
}

}  // namespace

int main() { return check::run_tests(); }
