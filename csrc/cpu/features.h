#pragma once

#include <string>

namespace gradstep::cpu {

// Processor features that the rows of cmake/isa.cmake may require.
enum Feature : unsigned {
  kAvx2 = 1u << 0,    // and F16C, which every processor with it has
  kAvx512 = 1u << 1,  // F, BW, DQ and VL: what every server part since Skylake has
};

// What both the processor (CPUID) and the operating system (XGETBV) support; no vendor is asked.
unsigned features();

// The vendor as CPUID names it, such as "GenuineIntel"; empty on other architectures. Tunings go by it, never results.
std::string vendor();

}  // namespace gradstep::cpu
