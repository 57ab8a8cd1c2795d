// A minimal test framework: TEST defines a test, CHECK reports a failure and continues, run_tests() runs all tests in
// file order.
#pragma once

#include <atomic>
#include <cstdio>
#include <vector>

namespace check {

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

inline std::atomic<int> failures{0};  // CHECK may be used in any thread

struct Register {
  Register(const char* name, void (*body)()) { tests().push_back({name, body}); }
};

// Returns main's exit status.
inline int run_tests() {
  for (const Test& test : tests()) {
    const int before = failures;
    std::printf("%s ... ", test.name);
    std::fflush(stdout);  // shows the name of a test that hangs; a forked child inherits no buffered text
    test.body();
    std::printf("%s\n", failures == before ? "ok" : "FAILED");
  }
  std::printf("%zu tests, %d failed checks\n", tests().size(), failures.load());
  return failures == 0 ? 0 : 1;
}

}  // namespace check

#define TEST(name)                                           \
  static void name();                                        \
  static const check::Register register_##name(#name, name); \
  static void name()

#define CHECK(condition)                             \
  ((condition) ? void(0)                             \
               : void((check::failures.fetch_add(1), \
                       std::fprintf(stderr, "%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition))))
