// The thread pool: runs independent tasks on the calling thread and a few workers.
#pragma once

#include <cstddef>

namespace gradstep::cpu {

// Runs one task of a job. Tasks run in any order, must not throw, and must not fork.
using Task = void (*)(void* context, std::size_t index);

// Runs task(context, i) for every i in [0, count), on the calling thread and at most threads - 1 workers, and returns
// when all are done. Neighbouring indices mostly run on one thread, the same one while `threads` is the same. Without
// `wake`, only workers still awake from the last call help: a small job would be over before another one wakes. A call
// that finds the pool busy, with another thread's job or with the one that it is nested in, does not wait: it runs its
// tasks on its own thread. Workers are started by the first call with `wake` that needs them; after fork() the child
// starts its own.
void parallel_for(std::size_t count, int threads, bool wake, Task task, void* context);

// The number of workers, for tests.
int worker_count();

}  // namespace gradstep::cpu
