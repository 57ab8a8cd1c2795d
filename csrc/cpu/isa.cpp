#include "cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "cpu/features.h"

namespace gradstep::cpu {

#define GS_ISA_ROW(name, required, flags)                    \
  const Kernels& find_kernels_##name(const rules::Key& key); \
  const Conversions& conversions_##name();
#include "isa_list.inc"
#undef GS_ISA_ROW

namespace {

struct Isa {
  const char* name;
  const char* flags;  // compiler flags of its kernels, in addition to the common ones
  unsigned required;
  const Kernels& (*find_kernels)(const rules::Key&);
  const Conversions& (*conversions)();
};

constexpr Isa kIsas[] = {
#define GS_ISA_ROW(name, required, flags) {#name, flags, required, find_kernels_##name, conversions_##name},
#include "isa_list.inc"
#undef GS_ISA_ROW
};

bool supported(const Isa& isa) {
  static const unsigned found = features();
  return (found & isa.required) == isa.required;
}

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

// `source` prefixes the error message with the origin of the name.
const Isa* choose(const std::string& name, const std::string& source) {
  const Isa* chosen = nullptr;
  for (const Isa& isa : kIsas) {
    if (supported(isa) && (name.empty() || name == isa.name)) chosen = &isa;
  }
  if (chosen == nullptr) {
    throw std::invalid_argument(source + "instruction set '" + name + "' is not available: this machine supports " +
                                join(supported_isas()) + "; this build has " + join(compiled_isas()));
  }
  return chosen;
}

const Isa* choose_default() {
  const char* name = std::getenv("GRADSTEP_ISA");
  return choose(name == nullptr ? "" : name, "GRADSTEP_ISA: ");
}

std::atomic<const Isa*>& in_use() {
  static std::atomic<const Isa*> isa{choose_default()};
  return isa;
}

}  // namespace

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : kIsas) names.emplace_back(isa.name);
  return names;
}

std::string isa_flags(const std::string& name) {
  for (const Isa& isa : kIsas) {
    if (name == isa.name) return isa.flags;
  }
  return "";
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : kIsas) {
    if (supported(isa)) names.emplace_back(isa.name);
  }
  return names;
}

void use_isa(const std::string& name) { in_use() = name.empty() ? choose_default() : choose(name, ""); }

std::string isa() { return in_use().load()->name; }

const Kernels& find_kernels(const rules::Key& key) {
  return in_use().load(std::memory_order_relaxed)->find_kernels(key);
}

const Conversions& conversions() { return in_use().load(std::memory_order_relaxed)->conversions(); }

}  // namespace gradstep::cpu
