// The number of threads that this process may keep busy.
#pragma once

#include <string>

namespace gradstep::cpu {

// The number of CPUs that this process may run on, limited by the quota of its control group. At least 1.
int default_threads();

// The tightest CPU quota (version 1 or 2) of the process's control group, its ancestors and the mounted root, in whole
// CPUs, rounded up; 0 if there is none. The arguments are /proc/self/cgroup and /sys/fs/cgroup; tests pass substitutes.
int quota_cores(const std::string& proc_self_cgroup, const std::string& cgroup_root);

}  // namespace gradstep::cpu
