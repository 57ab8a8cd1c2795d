#pragma once

#include <map>
#include <string>
#include <vector>

#include "bind/bind.h"

namespace gradstep::bind {

using Options = std::map<std::string, double>;

// Options in the catalog's order; the names must be exactly the rule's.
std::vector<double> in_order(int rule, const Options& options);

}  // namespace gradstep::bind
