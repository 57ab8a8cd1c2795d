#pragma once

#include <string>
#include <vector>

#include "cpu/conversions.h"
#include "cpu/kernel.h"

namespace gradstep::cpu {

// The instruction sets compiled in, weakest first, and those that this machine can run.
std::vector<std::string> compiled_isas();
std::vector<std::string> supported_isas();
std::string isa_flags(const std::string& name);

// The one in use: the strongest supported, or what GRADSTEP_ISA names. The name must be a supported one; an empty name
// asks for the default again. Throws std::invalid_argument.
void use_isa(const std::string& name);
std::string isa();

// Of the set now in use, the kernels for a key, and the conversions of what is stored.
const Kernels& find_kernels(const rules::Key& key);
const Conversions& conversions();

}  // namespace gradstep::cpu
