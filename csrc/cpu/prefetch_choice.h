#pragma once

#include <string>
#include <vector>

namespace gradstep::cpu {

// "off" and "on". Results are the same with both.
std::vector<std::string> prefetch_choices();

// The choice in use. An empty name selects the default: GRADSTEP_PREFETCH, or else the faster choice on processors of
// this vendor. Throws std::invalid_argument.
void use_prefetch(const std::string& name);
std::string prefetch();

// The choice without GRADSTEP_PREFETCH.
std::string default_prefetch();

// Whether loops over large arrays prefetch them.
bool prefetches();

}  // namespace gradstep::cpu
