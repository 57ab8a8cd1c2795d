#pragma once

#include <cstdint>

// The numbers that speed on a processor depends on, and nothing else, each with the measurement that chose it. None
// changes a bit of a result. "Zen 4" is an EPYC of two cores with AVX-512 and 32 MB of L3.
namespace gradstep::cpu {

// Prefetching, where it is on (cpu/prefetch_choice.cpp): how many bytes ahead, and how many of a stream at a time.
// Chosen on a Xeon with arrays within its L3; on Zen 4 no form was faster than none (benchmarks/results).
inline constexpr std::int64_t kPrefetchDistance = 2048, kPrefetchBytes = 512;

// Elements of a tile: six streams of doubles, and one on its way, take 28 KB, within every L1. Other sizes were not
// measured.
inline constexpr std::int64_t kTile = 512;

// A row of a strided tensor with so many elements gets a call of the kernel. Not measured since it was chosen.
inline constexpr std::int64_t kRowWorthACall = 32;

// Pieces of at least so many elements are updated from a cache line of the parameter on, what comes before it apart.
// NumPy's large arrays all begin 16 bytes after a line, so gradient and states mostly lie in step, and no register is
// loaded from two lines: 4 to 6 % of a step on 16 million elements, up to 14 % on a million (Zen 4, one thread).
inline constexpr std::int64_t kAlignFrom = 4096;

// Steps that move fewer bytes stay on the calling thread. With awake workers, two threads were faster than one from
// 260 KB (SGD) and 150 KB (Adam) on (Zen 4).
inline constexpr std::int64_t kBytesWorthSharing = 256 << 10;

// Steps that move at least as many wake sleeping workers: two threads were faster from 7 MB (SGD) and 8 MB (Adam) on
// (Zen 4).
inline constexpr std::int64_t kBytesWorthWaking = 8 << 20;

// About how many elements a task of a step with `elements` holds: few enough that threads end together, enough that
// claiming a task costs nothing (20 ns, where 4096 elements take 1 us and more).
constexpr std::int64_t grain(std::int64_t elements) {
  return elements < 256 * 4096 ? 4096 : elements > 256 * 65536 ? 65536 : elements / 256;
}

// What a worker spins before it sleeps, in microseconds: about what it takes to be woken (10 to 50 us in a virtual
// machine of two cores, Linux 6.18).
inline constexpr int kPatience = 50;

// And before it takes from another's share, in microseconds: taken work comes with the other core's cache lines, which
// cost more than the wait for a thread that is nearly through (Momentum on 100 000 elements and two threads: a tenth
// less time).
inline constexpr int kGrace = 3;

}  // namespace gradstep::cpu
