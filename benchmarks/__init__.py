"""gradstep beside its ceiling and its peers: ``python -m benchmarks``, and how to read what it writes.

**What takes turns.** All arms of a trial are alive at once and are timed in turn, A B C B C A ..., each round in an
order of its own, so that a noisy moment hits all of them. A sample is a block of calls, about 300 us of them. An arm
has several warm-up calls before its first block; and every block begins when a call takes no more than 1.5 times the
least of those, or after 50 ms. Kept are all samples, their median, quartiles and the least. On a shared machine only
ratios within one trial mean something.

**What is checked.** After the last turn the answer of every arm is compared with `gradstep.reference` after as many
steps: gradstep's bit for bit, a peer's to a thousandth of the way that the parameters went. A trial with a wrong answer
is left out of the report, which names it, and the run ends with exit status 1. A peer's 8-bit states are other numbers
than gradstep's: a trial of its own measures how far the parameters of both deviate from those with float32 states.

**The peers at their best.** NumPy is written by hand with ``out=``, in pieces that stay in the cache. torch is shown in
all its forms (single, foreach, fused where it has one), optax compiled with donated buffers, Numba exactly and with
fast-math, which takes approximate roots. bitsandbytes (0.50 or newer) is measured in the part storage alone. A worker
of OpenMP spins for about 15 ms after a call. On a virtual machine of two cores Linux was seen to wake it on the
caller's own core and to leave it there for milliseconds: the calls of torch and Numba took a hundred times longer. So
there is a pause of 40 ms before every block, which also keeps the cores free of spinning neighbours while gradstep
runs; a block waits until calls are up to speed; and torch is judged by its median in the form that is best there. A
cold call cannot be waited for: judge OpenMP's by the least.

**The ceiling** is the fastest of several in-place passes over as many streams, in the same trial and on as many
threads: plain, with 1 or with 8 lines of each stream prefetched at a time, on pages of 4 KB and of 2 MB; its form
stands in brackets. These loops (ceiling.cpp, compiled here for this machine) share nothing with gradstep, only add, and
have threads and memory of their own; so a choice of gradstep's that is wrong on a machine shows. GB/s count the least
traffic of the rule: the gradient read, the parameter and each state read and written.

**On a GPU** (the parts cuda_large, cuda_many and cuda_storage, left out where there is none) time is taken by its
events, on a stream that is no library's default. Before each sample a buffer larger than its cache is overwritten, for
so long that Python has sent off the step meanwhile: what is timed is the GPU's work, not its waiting. Arms take three
times as many turns, without rest. The ceiling is a copy within its memory that reads and writes as many bytes as the
step. The right answer is gradstep's own on the processor, bit for bit. ``python -m benchmarks.cuda_guard`` says of kept
results whether they are as fast as they should be.
"""
