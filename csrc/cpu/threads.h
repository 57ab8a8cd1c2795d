#pragma once

namespace gradstep::cpu {

// Threads a step may use, the caller's included: GRADSTEP_NUM_THREADS, else the cores this process may use.
// Throws std::invalid_argument where the variable is not a number from 1 to kMaxThreads.
int threads();
void set_threads(int count);

// Whether a step is shared among them however small it is: for tests.
bool shares_all();
void share_all(bool on);

inline constexpr int kMaxThreads = 1024;

}  // namespace gradstep::cpu
