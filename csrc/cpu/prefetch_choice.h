#pragma once

#include <string>
#include <vector>

namespace gradstep::cpu {

// "off" and "on". Results are the same with both.
std::vector<std::string> prefetch_choices();

// The one in use: what GRADSTEP_PREFETCH names, else what was faster on processors of this vendor. An empty name asks
// for that again. Throws std::invalid_argument.
void use_prefetch(const std::string& name);
std::string prefetch();

// What would be in use without GRADSTEP_PREFETCH.
std::string default_prefetch();

// Whether loops over large arrays prefetch them.
bool prefetches();

}  // namespace gradstep::cpu
