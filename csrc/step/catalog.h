#pragma once

#include <string>
#include <vector>

#include "exec/tensor_job.h"

// The list of rules as run-time data.
namespace gradstep::step {

struct RuleInfo {
  std::string name;
  std::vector<std::string> options;  // in the order in which values are given; the common ones first
  std::vector<rules::State> states;
  std::vector<rules::Scalar> scalars;

  rules::Clock first_clock() const;  // before a tensor's first step
};

const std::vector<RuleInfo>& catalog();

// The number of the rule of that name. Throws std::invalid_argument.
int rule_number(const std::string& name);

// The update that these options, in the catalog's order, ask for.
rules::Key key_of(int rule, const std::vector<double>& options, Compute compute);

// What these options ask of all rules alike.
rules::Common::Options common(const std::vector<double>& options);

// Whether these options ask for what is stored in 16 bits to be rounded stochastically.
bool rounds_stochastically(const std::vector<double>& options);

// Whether an update keeps the rule's state of that place in the catalog.
inline bool keeps(const rules::Key& key, std::size_t state) { return (key.variant >> state) & 1u; }

// What an update reads and writes for each element, in bytes of the type that it computes in: the gradient once, the
// parameter and the states that it keeps twice.
std::int64_t bytes_moved(const rules::Key& key);

// An update of a tensor whose clock already stands at the new step, with gradients multiplied by a factor; advances the
// clock's scalars.
PreparedUpdate make_update(const rules::Key& key, const std::vector<double>& options, rules::Clock& clock,
                           double factor);

// The options of a group, in the catalog's order, and the updates that they ask for.
struct GroupOptions {
  std::vector<double> values;
  rules::Key keys[2];  // of tensors that are computed in float, and in double

  const rules::Key& key(Compute compute) const { return keys[static_cast<int>(compute)]; }
};
GroupOptions group_options(int rule, std::vector<double> values);

}  // namespace gradstep::step
