#include "cpu/features.h"

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace gradstep::cpu {

#if defined(__x86_64__)
namespace {

struct Registers {
  std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(std::uint32_t leaf, std::uint32_t subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

// The register sets that the operating system saves when it switches tasks (XCR0).
std::uint64_t saved_registers() {
  std::uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<std::uint64_t>(high) << 32) | low;
}

constexpr bool all_of(std::uint64_t word, std::uint64_t bits) { return (word & bits) == bits; }

}  // namespace

unsigned features() {
  constexpr std::uint32_t kOsxsave = 1u << 27, kAvx = 1u << 28, kF16c = 1u << 29;           // leaf 1, ecx
  constexpr std::uint32_t kAvx2Bit = 1u << 5;                                               // leaf 7, ebx
  constexpr std::uint32_t kAvx512Bits = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);  // F DQ BW VL
  constexpr std::uint64_t kYmm = 0x6, kZmm = 0xe6;                                          // xcr0

  const std::uint32_t basic = cpuid(1, 0).ecx;
  if (!all_of(basic, kOsxsave | kAvx)) return 0;
  const std::uint64_t saved = saved_registers();
  const std::uint32_t extended = cpuid(7, 0).ebx;
  unsigned found = 0;
  if (all_of(saved, kYmm) && all_of(extended, kAvx2Bit) && all_of(basic, kF16c)) found |= kAvx2;
  if (all_of(saved, kZmm) && all_of(extended, kAvx512Bits)) found |= kAvx512;
  return found;
}

std::string vendor() {
  const Registers r = cpuid(0, 0);
  char name[12];
  std::memcpy(name, &r.ebx, 4);
  std::memcpy(name + 4, &r.edx, 4);
  std::memcpy(name + 8, &r.ecx, 4);
  return {name, sizeof name};
}

#else

unsigned features() { return 0; }
std::string vendor() { return {}; }

#endif

}  // namespace gradstep::cpu
