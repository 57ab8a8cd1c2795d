// How many cores this process may keep busy.
#pragma once

#include <string>

namespace gradstep::cpu {

// The CPUs this process may run on, or fewer where its control group's quota is smaller. At least 1.
int available_cores();

// The tightest CPU quota (version 1 or 2) of the process's control group, its ancestors and the mounted root, in whole
// CPUs, rounded up; 0 if there is none. The arguments are /proc/self/cgroup and /sys/fs/cgroup; tests pass substitutes.
int quota_cores(const std::string& proc_self_cgroup, const std::string& cgroup_root);

}  // namespace gradstep::cpu
