#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "rules/all.h"

// The list of rules as run-time data.
namespace gradstep::step {

struct RuleInfo {
  std::string name;
  std::vector<std::string> options;  // in the order in which values are given; the common ones first
  std::vector<rules::State> states;
};

const std::vector<RuleInfo>& catalog();

// The number of the rule of that name. Throws std::invalid_argument.
int rule_number(const std::string& name);

// The update that these options, in the catalog's order, ask for.
rules::Key key_of(int rule, const std::vector<double>& options, Compute compute);

// What these options ask of all rules alike.
rules::Common::Options common(const std::vector<double>& options);

// Whether an update keeps the rule's state of that place in the catalog.
inline bool keeps(const rules::Key& key, std::size_t state) { return (key.variant >> state) & 1u; }

// One step's scalars, as bytes that the key's kernel reads.
struct Scalars {
  alignas(16) std::byte bytes[128];
};

// Computes them for a tensor whose clock already stands at the new step; advances the clock's product.
void prepare(const rules::Key& key, const std::vector<double>& options, rules::Clock& clock, Scalars& scalars);

}  // namespace gradstep::step
