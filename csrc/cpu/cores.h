// How many threads this process may keep busy.
#pragma once

#include <string>

namespace gradstep::cpu {

// The CPUs this process may run on, or fewer where its control group's quota is smaller. At least 1.
int default_threads();

// The tightest CPU quota (of version 1 or 2) on the process's control group, its ancestors and the root that is
// mounted, in whole CPUs, rounded up; 0 where there is none. The arguments are /proc/self/cgroup and /sys/fs/cgroup, or
// a test's imitations.
int quota_cores(const std::string& proc_self_cgroup, const std::string& cgroup_root);

}  // namespace gradstep::cpu
