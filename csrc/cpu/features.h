#pragma once

#include <string>

namespace gradstep::cpu {

// Processor features that the rows of cmake/isa.cmake may require.
enum Feature : unsigned {
  kAvx2 = 1u << 0,    // and F16C, which every processor with AVX2 has
  kAvx512 = 1u << 1,  // F, BW, DQ and VL, which every server part since Skylake has
};

// The features that both the processor (CPUID) and the operating system (XGETBV) support, whatever the vendor.
unsigned features();

// The vendor string of CPUID, such as "GenuineIntel"; empty on other architectures. Used for tuning only: results do
// not depend on it.
std::string vendor();

}  // namespace gradstep::cpu
