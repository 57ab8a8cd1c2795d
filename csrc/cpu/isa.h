#pragma once

#include <string>
#include <vector>

#include "cpu/conversions.h"
#include "cpu/kernel.h"

namespace gradstep::cpu {

// The compiled instruction sets, weakest first, and those of them that this machine supports.
std::vector<std::string> compiled_isas();
std::vector<std::string> supported_isas();
std::string isa_flags(const std::string& name);

// The instruction set in use. An empty name selects the default: GRADSTEP_ISA, or else the strongest supported set.
// Throws std::invalid_argument if the set is not supported.
void use_isa(const std::string& name);
std::string isa();

// The kernels for a key, and the conversions, of the instruction set in use.
const Kernels& find_kernels(const rules::Key& key);
const Conversions& conversions();

}  // namespace gradstep::cpu
