#include "bind/bind.h"
#include "bind/entry.h"

GRADSTEP_MODULE(_core, m) {
  m.doc() = "The compiled core of gradstep: rules, kernels, threads.";
  gradstep::bind::register_config(m);
  gradstep::bind::register_rules(m);
  gradstep::bind::register_cpu(m);
}
