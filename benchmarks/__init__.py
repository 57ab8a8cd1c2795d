"""Benchmarks of gradstep, of the ceiling that memory sets, and of its peers: ``python -m benchmarks``.

**Timing.** All arms of a trial exist at once and are timed in turn, A B C B C A ..., in a new order each round, so that
noise affects all of them. A sample is a block of calls of about 300 us. Each arm has several warm-up calls before its
first block. A block begins when a call takes at most 1.5 times the minimum of the warm-up calls, or after 50 ms. All
samples are kept, with their median, quartiles and minimum. On a shared machine only ratios within one trial are
meaningful.

**Checks.** After the last round the result of every arm is compared with `gradstep.reference` after the same number of
steps: gradstep's bit for bit, a peer's to a thousandth of the distance that the parameters moved. The report leaves out
and names a trial with a wrong result, and the exit status is then 1. A peer's 8-bit states have another format than
gradstep's: a separate trial measures how far the parameters of both deviate from those with float32 states.

**Peers.** NumPy is written by hand with ``out=``, in pieces that fit into the cache. torch is measured in all its forms
(single, foreach, and fused where it exists), optax compiled with donated buffers, Numba exactly and with fast-math,
which uses approximate roots. bitsandbytes (0.50 or newer) is measured only in the part storage. An OpenMP worker spins
for about 15 ms after a call. On a virtual machine of two cores Linux was seen to wake it on the caller's core and to
leave it there for milliseconds: calls of torch and Numba took a hundred times longer. Every block is therefore preceded
by a pause of 40 ms, which also keeps spinning workers of peers off the cores while gradstep runs; a block begins once
calls are at full speed; and torch is compared by the median of its best form. Cold calls cannot be warmed up: compare
OpenMP's by the minimum.

The part torch, left out where torch is not installed, has real parameters of torch: `optimizer.step()` of the classes
of `gradstep.torch` and of `torch.optim`. What is expected is there the result of gradstep's classes for NumPy.

**The ceiling** is the fastest of several in-place passes over the same number of streams, in the same trial and on the
same number of threads: plain, or with 1 or 8 cache lines of each stream prefetched at a time, on pages of 4 KB or 2 MB;
tables show its form in brackets. These loops (ceiling.cpp, compiled here for this machine) share nothing with gradstep,
only add, and have their own threads and memory, so that a choice in gradstep that is wrong for a machine becomes
visible. GB/s count the minimal traffic of the rule: the gradient read, the parameter and each state read and written.

**GPUs** (the parts cuda_large, cuda_many and cuda_storage, left out without a GPU) are timed with their events, on a
stream that is no library's default. Before each sample a buffer larger than the cache is overwritten for long enough
that Python has launched the step meanwhile: the time is that of the GPU's work, without waiting. Arms take three times
as many turns, without pauses. The ceiling is a copy within the GPU's memory that reads and writes as many bytes as the
step. The expected result is gradstep's own on the processor, bit for bit. ``python -m benchmarks.cuda_guard`` checks
whether stored results are fast enough.
"""
