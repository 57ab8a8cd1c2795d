#include "step/catalog.h"

#include <cstring>
#include <iterator>
#include <new>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "base/ieee_mode.h"

namespace gradstep::step {
namespace {

std::vector<std::string> split(const char* names) {
  std::vector<std::string> parts;
  while (*names != '\0') {
    const std::size_t length = std::strcspn(names, ",");
    parts.emplace_back(names, length);
    names += length;
    names += std::strspn(names, ", ");
  }
  return parts;
}

constexpr std::size_t kCommon = sizeof(rules::Common::Options) / sizeof(double);

template <class Options>
Options read(const double* values) {
  static_assert(std::is_trivially_copyable_v<Options> && sizeof(Options) % sizeof(double) == 0);
  Options options;
  std::memcpy(&options, values, sizeof options);
  return options;
}

template <class Rule>
std::vector<rules::Scalar> scalars_of(decltype(&Rule::kScalars)) {
  static_assert(std::size(Rule::kScalars) <= rules::kMaxScalars);
  return {std::begin(Rule::kScalars), std::end(Rule::kScalars)};
}
template <class Rule>
std::vector<rules::Scalar> scalars_of(...) {
  return {};
}

struct Describe {
  template <class Rule>
  RuleInfo visit() const {
    RuleInfo info{Rule::kName, split(rules::Common::Options::kNames), {}, scalars_of<Rule>(nullptr)};
    for (auto& name : split(Rule::Options::kNames)) info.options.push_back(name);
    for (const rules::State& state : Rule::kStates) {
      if (state.name != nullptr) info.states.push_back(state);
    }
    return info;
  }
};

struct Variant {
  const double* options;

  template <class Rule>
  unsigned visit() const {
    return Rule::variant(read<typename Rule::Options>(options + kCommon));
  }
};

struct Prepare {
  const double* options;
  rules::Clock& clock;
  double factor;
  std::byte* element;

  template <class ElementUpdate>
  void visit() const {
    static_assert(sizeof(ElementUpdate) <= rules::kMaxElementUpdate && alignof(ElementUpdate) <= 16);
    rules::advance_average(read<rules::Common::Options>(options), clock);
    new (element) ElementUpdate(read<rules::Common::Options>(options),
                                read<typename ElementUpdate::Options>(options + kCommon), clock, factor);
  }
};

template <class... Rules>
constexpr int length(rules::List<Rules...>) {
  return sizeof...(Rules);
}

}  // namespace

rules::Clock RuleInfo::first_clock() const {
  rules::Clock clock{};
  clock.ema_product = 1;
  for (std::size_t i = 0; i < scalars.size(); ++i) clock.scalars[i] = scalars[i].first;
  return clock;
}

const std::vector<RuleInfo>& catalog() {
  static const std::vector<RuleInfo> all = [] {
    std::vector<RuleInfo> infos;
    for (int number = 0; number < length(rules::All{}); ++number) {
      infos.push_back(rules::visit_rule(number, Describe{}, rules::All{}));
    }
    return infos;
  }();
  return all;
}

int rule_number(const std::string& name) {
  for (std::size_t number = 0; number < catalog().size(); ++number) {
    if (catalog()[number].name == name) return static_cast<int>(number);
  }
  throw std::invalid_argument("unknown rule '" + name + "'");
}

rules::Key key_of(int rule, const std::vector<double>& options, Compute compute) {
  const rules::Common::Options of_all = common(options);
  const unsigned variant = rules::visit_rule(rule, Variant{options.data()}, rules::All{});
  return {rule, variant, of_all.l2 != 0, rules::Common::bounds(of_all), compute};
}

std::int64_t bytes_moved(const rules::Key& key) {
  std::int64_t values = 3;
  const std::size_t states = catalog()[static_cast<std::size_t>(key.rule)].states.size();
  for (std::size_t s = 0; s < states; ++s) values += keeps(key, s) ? 2 : 0;
  return values * size_of(key.compute);
}

rules::Common::Options common(const std::vector<double>& options) {
  return read<rules::Common::Options>(options.data());
}

// A separate function: compilers may move arithmetic, but not calls, across a change of the floating-point mode.
template <class F>
[[gnu::noinline]] static void compute(const rules::Key& key, const F& f) {
  rules::visit(key, f);
}

bool averages(const std::vector<double>& options) {
  const double ema = common(options).ema;
  return ema == ema;
}

bool rounds_stochastically(const std::vector<double>& options) { return StorePolicy(common(options), 0).stochastic; }

PreparedUpdate make_update(const rules::Key& key, const std::vector<double>& options, rules::Clock& clock,
                           double factor) {
  PreparedUpdate update;
  static_cast<StorePolicy&>(update) = StorePolicy(common(options), clock.t);
  update.key = key;
  const IeeeMode ieee;
  compute(key, Prepare{options.data(), clock, factor, update.element});
  return update;
}

GroupOptions group_options(int rule, std::vector<double> values) {
  GroupOptions options{rule, std::move(values), {}};
  for (const Compute type : {Compute::kFloat, Compute::kDouble}) {
    options.keys[static_cast<int>(type)] = key_of(rule, options.values, type);
  }
  return options;
}

}  // namespace gradstep::step
