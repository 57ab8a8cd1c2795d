#pragma once

#include <string>
#include <vector>

#include "exec/tensor_job.h"

// The list of rules as run-time data.
namespace gradstep::step {

struct RuleInfo {
  std::string name;
  std::vector<std::string> options;  // in the order of the values; the common ones first
  std::vector<rules::State> states;
  std::vector<rules::Scalar> scalars;

  rules::Clock first_clock() const;  // before a tensor's first step
};

const std::vector<RuleInfo>& catalog();

// The number of a rule. Throws std::invalid_argument if the name is unknown.
int rule_number(const std::string& name);

// The key of the update that these options, in the catalog's order, select.
rules::Key key_of(int rule, const std::vector<double>& options, Compute compute);

// The options common to all rules.
rules::Common::Options common(const std::vector<double>& options);

// Whether these options enable stochastic rounding of narrow types.
bool rounds_stochastically(const std::vector<double>& options);

// Whether these options ask for an average of the parameters.
bool averages(const std::vector<double>& options);

// Whether an update keeps the state with this index in the catalog.
inline bool keeps(const rules::Key& key, std::size_t state) { return (key.variant >> state) & 1u; }

// The bytes that an update reads and writes per element, in its compute type: the gradient once, the parameter and each
// kept state twice.
std::int64_t bytes_moved(const rules::Key& key);

// Prepares the update of tensors with this clock, which must already be advanced to the new step; advances the clock's
// scalars. Gradients are multiplied by `factor`.
PreparedUpdate make_update(const rules::Key& key, const std::vector<double>& options, rules::Clock& clock,
                           double factor);

// The options of a group, in the catalog's order, and the keys of its updates.
struct GroupOptions {
  int rule;
  std::vector<double> values;
  rules::Key keys[2];  // by compute type

  const rules::Key& key(Compute compute) const { return keys[static_cast<int>(compute)]; }
};
GroupOptions group_options(int rule, std::vector<double> values);

}  // namespace gradstep::step
