#pragma once

namespace gradstep::cpu {

// The number of threads that a step may use, the caller's included: GRADSTEP_NUM_THREADS, or else the number of cores
// that this process may use. Throws std::invalid_argument if the variable is not an integer from 1 to kMaxThreads.
int threads();
void set_threads(int count);

// Whether steps use all threads whatever their size; for tests.
bool shares_all();
void share_all(bool on);

inline constexpr int kMaxThreads = 1024;

}  // namespace gradstep::cpu
