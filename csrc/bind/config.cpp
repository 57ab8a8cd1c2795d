#include <pybind11/stl.h>

#include "bind/bind.h"
#include "cpu/isa.h"
#include "cpu/pool.h"
#include "cpu/prefetch_choice.h"
#include "cpu/threads.h"

namespace py = pybind11;

namespace gradstep::bind {

void register_config(py::module_& m) {
  // A wrong GRADSTEP_ISA, GRADSTEP_PREFETCH or GRADSTEP_NUM_THREADS is an error at import, not at the first step.
  cpu::isa();
  cpu::prefetch();
  cpu::threads();

  m.attr("__version__") = GRADSTEP_VERSION;
  m.def("build_info", [] {
    py::dict info;
    info["compiler"] = GRADSTEP_COMPILER;
    info["flags"] = GRADSTEP_FLAGS;
    for (const std::string& isa : cpu::compiled_isas()) {
      const std::string flags = cpu::isa_flags(isa);
      if (!flags.empty()) info[("flags for " + isa).c_str()] = flags;
    }
    info["type"] = GRADSTEP_BUILD_TYPE;
    info["system"] = GRADSTEP_SYSTEM;
    return info;
  });

  m.def("compiled_isas", &cpu::compiled_isas);
  m.def("supported_isas", &cpu::supported_isas);
  m.def("isa", &cpu::isa);
  m.def("use_isa", &cpu::use_isa, py::arg("name"));

  m.def("prefetch_choices", &cpu::prefetch_choices);
  m.def("prefetch", &cpu::prefetch);
  m.def("default_prefetch", &cpu::default_prefetch);
  m.def("use_prefetch", &cpu::use_prefetch, py::arg("name"));

  m.attr("MAX_THREADS") = cpu::kMaxThreads;
  m.def("num_threads", &cpu::threads);
  m.def("set_num_threads", &cpu::set_threads, py::arg("count"));
  m.def("default_threads", &cpu::default_threads);
  m.def("threads_source", &cpu::threads_source);
  m.def("share_all", &cpu::share_all, py::arg("on"));
  m.def("worker_count", &cpu::worker_count);
}

}  // namespace gradstep::bind
