#include "cpu/cores.h"

#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <thread>

namespace gradstep::cpu {
namespace {

// Returns a file's contents, or an empty string if it cannot be opened. Uses no std::ifstream: in a module linked with
// -static-libstdc++ that is loaded beside NumPy's shared libstdc++, reading a number from a stream crashes.
std::string contents(const std::string& path) {
  std::string all;
  std::FILE* const file = std::fopen(path.c_str(), "re");
  if (file == nullptr) return all;
  char part[4096];
  for (std::size_t size; (size = std::fread(part, 1, sizeof part, file)) > 0;) all.append(part, size);
  std::fclose(file);
  return all;
}

// The number of CPUs that a control group's "quota period" allows, rounded up; 0 means no limit: an empty text, "max",
// or the -1 of version 1.
int cores(const std::string& text) {
  char* end = nullptr;
  errno = 0;
  const long long quota = std::strtoll(text.c_str(), &end, 10), period = std::strtoll(end, nullptr, 10);
  if (quota <= 0 || period <= 0 || errno == ERANGE) return 0;
  const long long whole = quota / period + (quota % period != 0);
  return static_cast<int>(std::min<long long>(whole, std::numeric_limits<int>::max()));
}

int cores_v2(const std::string& dir) { return cores(contents(dir + "/cpu.max")); }

int cores_v1(const std::string& dir) {
  return cores(contents(dir + "/cpu.cfs_quota_us") + " " + contents(dir + "/cpu.cfs_period_us"));
}

// The smaller of two limits; 0 means no limit.
int tighter(int a, int b) { return a == 0 || b == 0 ? std::max(a, b) : std::min(a, b); }

// The tightest limit of the group, its ancestors and the root. In a container `group` may be a path of the host that
// does not exist inside; the container's own group is then mounted at the root.
int tightest(int (*cores_in)(const std::string& dir), const std::string& root, std::string group) {
  int limit = cores_in(root);
  while (!group.empty()) {
    limit = tighter(limit, cores_in(root + group));
    const std::size_t slash = group.rfind('/');
    group.resize(slash == std::string::npos ? 0 : slash);
  }
  return limit;
}

bool lists_cpu(const std::string& controllers) { return ("," + controllers + ",").find(",cpu,") != std::string::npos; }

int affinity_cores() {
#if defined(__linux__)
  // The kernel rejects masks smaller than its own, so larger ones are tried in turn.
  for (std::size_t cpus = 1024; cpus <= std::size_t{1} << 20; cpus *= 2) {
    const std::size_t bytes = CPU_ALLOC_SIZE(cpus);
    cpu_set_t* const mask = CPU_ALLOC(cpus);
    if (mask == nullptr) break;
    const bool known = sched_getaffinity(0, bytes, mask) == 0;
    const bool too_small = !known && errno == EINVAL;
    const int count = known ? CPU_COUNT_S(bytes, mask) : 0;
    CPU_FREE(mask);
    if (known) return count;
    if (!too_small) break;
  }
#endif
  return static_cast<int>(std::thread::hardware_concurrency());
}

}  // namespace

int quota_cores(const std::string& proc_self_cgroup, const std::string& cgroup_root) {
  std::string group_v1, group_v2;
  const std::string lines = contents(proc_self_cgroup);  // "id:controllers:/group", no controllers for version 2
  for (std::size_t begin = 0, end = 0; begin < lines.size(); begin = end + 1) {
    end = std::min(lines.find('\n', begin), lines.size());
    const std::string line = lines.substr(begin, end - begin);
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (controllers.empty()) group_v2 = line.substr(second + 1);
    if (lists_cpu(controllers)) group_v1 = line.substr(second + 1);
  }
  // Version 1 mounts "cpu,cpuacct" or "cpuacct,cpu", with a link "cpu" beside it; a container may have only one of
  // these names.
  int limit = tightest(cores_v2, cgroup_root, group_v2);
  for (const char* mount : {"/cpu", "/cpu,cpuacct", "/cpuacct,cpu"}) {
    limit = tighter(limit, tightest(cores_v1, cgroup_root + mount, group_v1));
  }
  return limit;
}

int available_cores() {
  int cores = affinity_cores();
#if defined(__linux__)
  cores = tighter(cores, quota_cores("/proc/self/cgroup", "/sys/fs/cgroup"));
#endif
  return std::max(cores, 1);
}

}  // namespace gradstep::cpu
