#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>

#include "bind/bind.h"
#include "bind/options.h"
#include "step/catalog.h"

namespace py = pybind11;

namespace gradstep::bind {

std::vector<double> in_order(int rule, const Options& options) {
  const step::RuleInfo& info = step::catalog()[static_cast<std::size_t>(rule)];
  std::vector<double> values;
  for (const std::string& name : info.options) {
    const auto found = options.find(name);
    if (found == options.end()) throw std::invalid_argument(info.name + " needs the option " + name);
    values.push_back(found->second);
  }
  for (const auto& [name, value] : options) {
    if (std::find(info.options.begin(), info.options.end(), name) == info.options.end()) {
      throw std::invalid_argument(info.name + " has no option " + name);
    }
  }
  return values;
}

namespace {

std::vector<std::string> kept_states(const std::string& rule, const Options& options) {
  const int number = step::rule_number(rule);
  const auto& states = step::catalog()[static_cast<std::size_t>(number)].states;
  const rules::Key key = step::key_of(number, in_order(number, options), {});
  std::vector<std::string> kept;
  for (std::size_t s = 0; s < states.size(); ++s) {
    if (step::keeps(key, s)) kept.emplace_back(states[s].name);
  }
  return kept;
}

}  // namespace

void register_rules(py::module_& m) {
  m.def("rules", [] {
    py::list all;
    for (const step::RuleInfo& info : step::catalog()) {
      py::dict entry;
      entry["name"] = info.name;
      entry["options"] = info.options;
      py::list states, non_negative;
      for (const rules::State& state : info.states) {
        states.append(state.name);
        if (state.non_negative) non_negative.append(state.name);
      }
      entry["states"] = states;
      entry["non_negative"] = non_negative;
      py::list scalars;
      for (const rules::Scalar& scalar : info.scalars) scalars.append(py::make_tuple(scalar.name, scalar.first));
      entry["scalars"] = scalars;
      all.append(entry);
    }
    return all;
  });
  m.def("dtypes", [] {
    constexpr const char* kKinds[] = {"native", "narrow", "blocked"};
    py::dict all;
    for (const DTypeInfo& about : kDTypes) {
      py::dict entry;
      entry["item_size"] = about.item_size;
      entry["kind"] = kKinds[static_cast<int>(about.kind)];
      entry["compute"] = dtype_name(native_of(about.compute));
      entry["random_bits"] = about.random_bits;
      all[about.name] = entry;
    }
    return all;
  });
  m.def("kept_states", &kept_states, py::arg("rule"), py::arg("options"));
}

}  // namespace gradstep::bind
