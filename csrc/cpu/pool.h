// The thread pool: a loop of independent tasks, shared between the calling thread and a few sleeping workers.
#pragma once

#include <cstddef>

namespace gradstep::cpu {

// Runs one task of a job. Tasks run in any order, must not throw, and must not fork.
using Task = void (*)(void* context, std::size_t index);

// Runs task(context, i) for every i in [0, count), on the calling thread and at most threads - 1 workers, and returns
// when all are done. Neighbouring indices mostly run on one thread, the same one as long as `threads` is. Without
// `wake`, only workers that are still awake from the last call help: a small job is over before another wakes. A call
// that finds the pool busy, with another thread's job or with the one it is nested in, does not wait: it runs its tasks
// on its own thread. The first call that wakes a worker starts it; after fork() the child starts its own.
void parallel_for(std::size_t count, int threads, bool wake, Task task, void* context);

// Workers alive now, for tests.
int worker_count();

}  // namespace gradstep::cpu
