#include "cpu/threads.h"

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/cores.h"

namespace gradstep::cpu {
namespace {

int checked(long count, const std::string& source, const std::string& given) {
  if (count < 1 || count > kMaxThreads) {
    throw std::invalid_argument(source + "the number of threads must be an integer from 1 to " +
                                std::to_string(kMaxThreads) + ", got " + given);
  }
  return static_cast<int>(count);
}

struct Choice {
  int count;
  const char* source;
};

// OMP_NUM_THREADS is a number, or a list of one for each level of nested parallelism: a step is the outermost.
Choice default_choice() {
  const Choice cores{std::min(available_cores(), kMaxThreads), "available cores"};
  const char* const text = std::getenv("OMP_NUM_THREADS");
  if (text == nullptr) return cores;
  char* end = nullptr;
  const long count = std::strtol(text, &end, 10);
  while (std::isspace(static_cast<unsigned char>(*end)) != 0) ++end;
  if (count < 1 || count >= cores.count || (*end != '\0' && *end != ',')) return cores;
  return {static_cast<int>(count), "OMP_NUM_THREADS"};
}

Choice initial() {
  constexpr const char* kVariable = "GRADSTEP_NUM_THREADS";
  const char* const text = std::getenv(kVariable);
  if (text == nullptr || *text == '\0') return default_choice();
  char* end = nullptr;
  const long count = std::strtol(text, &end, 10);
  return {checked(*end == '\0' ? count : 0, std::string(kVariable) + ": ", "'" + std::string(text) + "'"), kVariable};
}

struct Setting {
  std::atomic<int> count;
  std::atomic<const char*> source;

  explicit Setting(const Choice& choice) : count(choice.count), source(choice.source) {}
};

Setting& setting() {
  static Setting all(initial());
  return all;
}

std::atomic<bool> sharing_all{false};

}  // namespace

bool shares_all() { return sharing_all.load(std::memory_order_relaxed); }

void share_all(bool on) { sharing_all = on; }

int threads() { return setting().count.load(std::memory_order_relaxed); }

void set_threads(int count) {
  setting().count = checked(count, "", std::to_string(count));
  setting().source = "set_num_threads";
}

int default_threads() { return default_choice().count; }

const char* threads_source() { return setting().source; }

}  // namespace gradstep::cpu
