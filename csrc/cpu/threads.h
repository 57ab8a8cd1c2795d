#pragma once

namespace gradstep::cpu {

// Threads a step may use, the caller's included: GRADSTEP_NUM_THREADS, else default_threads().
// Throws std::invalid_argument where the variable is not a number from 1 to kMaxThreads.
int threads();
void set_threads(int count);

// The cores this process may use, or fewer where OMP_NUM_THREADS, which process pools set, is less. A value of it that
// OpenMP does not define is ignored, as OpenMP's implementations do.
int default_threads();

// What the number of threads was taken from: the name of a variable, "available cores", or "set_num_threads".
const char* threads_source();

// Whether a step is shared among them however small it is: for tests.
bool shares_all();
void share_all(bool on);

inline constexpr int kMaxThreads = 1024;

}  // namespace gradstep::cpu
