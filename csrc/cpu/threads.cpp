#include "cpu/threads.h"

#include <algorithm>
#include <atomic>
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

int initial() {
  const char* text = std::getenv("GRADSTEP_NUM_THREADS");
  if (text == nullptr || *text == '\0') return std::min(default_threads(), kMaxThreads);
  char* end = nullptr;
  const long count = std::strtol(text, &end, 10);
  return checked(*end == '\0' ? count : 0, "GRADSTEP_NUM_THREADS: ", "'" + std::string(text) + "'");
}

std::atomic<int>& setting() {
  static std::atomic<int> count{initial()};
  return count;
}

std::atomic<bool> sharing_all{false};

}  // namespace

bool shares_all() { return sharing_all.load(std::memory_order_relaxed); }

void share_all(bool on) { sharing_all = on; }

int threads() { return setting().load(std::memory_order_relaxed); }

void set_threads(int count) { setting() = checked(count, "", std::to_string(count)); }

}  // namespace gradstep::cpu
