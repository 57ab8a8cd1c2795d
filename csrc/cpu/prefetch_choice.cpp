#include "cpu/prefetch_choice.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "cpu/features.h"

namespace gradstep::cpu {
namespace {

struct Vendor {
  const char* name;
  bool prefetches;
};

// Vendors whose processors have been measured; other vendors' do not prefetch. Figures are for 16 million float32
// elements.
constexpr Vendor kVendors[] = {
    // A Xeon (AVX-512, two threads, arrays within its L3 of 480 MB; arrays in memory have not been measured): without
    // prefetching a step took 5 to 15 % longer, and a norm 20 to 60 %.
    {"GenuineIntel", true},
    // With prefetching a step took 12 to 48 % longer on an EPYC of Zen 3, and 0 to 49 % longer on one of Zen 4, where
    // other forms (one line at a time, at page ends, into L2) were no faster than none:
    // benchmarks/results/*/prefetch.md.
    {"AuthenticAMD", false},
};

bool by_vendor() {
  const std::string found = vendor();
  for (const Vendor& known : kVendors) {
    if (found == known.name) return known.prefetches;
  }
  return false;
}

const char* name_of(bool prefetches) { return prefetches ? "on" : "off"; }

bool choose(const std::string& name, const std::string& source) {
  for (const bool choice : {false, true}) {
    if (name == name_of(choice)) return choice;
  }
  throw std::invalid_argument(source + "prefetching must be 'off' or 'on', got '" + name + "'");
}

bool initial() {
  const char* name = std::getenv("GRADSTEP_PREFETCH");
  return name == nullptr || *name == '\0' ? by_vendor() : choose(name, "GRADSTEP_PREFETCH: ");
}

std::atomic<bool>& in_use() {
  static std::atomic<bool> choice{initial()};
  return choice;
}

}  // namespace

std::vector<std::string> prefetch_choices() { return {name_of(false), name_of(true)}; }

void use_prefetch(const std::string& name) { in_use() = name.empty() ? initial() : choose(name, ""); }

std::string prefetch() { return name_of(prefetches()); }

std::string default_prefetch() { return name_of(by_vendor()); }

bool prefetches() { return in_use().load(std::memory_order_relaxed); }

}  // namespace gradstep::cpu
