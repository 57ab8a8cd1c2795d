#pragma once

#include <cstdint>

// Tuning parameters for processors, each with the measurement that chose it. Results do not depend on them. "Zen 4" is
// an EPYC of two cores with AVX-512 and 32 MB of L3.
namespace gradstep::cpu {

// Prefetching, where it is on (cpu/prefetch_choice.cpp): the distance in bytes, and the bytes of a stream per prefetch.
// Chosen on a Xeon with arrays within its L3; on Zen 4 no form was faster than none (benchmarks/results).
inline constexpr std::int64_t kPrefetchDistance = 2048, kPrefetchBytes = 512;

// The bytes of a register, at most, in whole runs of updates without states. With registers of 64 bytes, SGD on 25
// million elements took 11 to 18 % longer on one thread and 3 to 8 % on two where memory has pages of 4 KB (torch's
// has); on huge pages and in caches the two differ by 4 % at most. With states, 64 bytes are faster or equal (Zen 4).
inline constexpr int kStatelessRegister = 32;

// Elements of a tile. Six tiles of doubles and one of raw items take 28 KB, which fits into every L1. Other sizes have
// not been measured.
inline constexpr std::int64_t kTile = 512;

// The blocks in which a gradient is gathered whose closest elements are not in its rows (cpu/panel.h): bytes of a
// block, its columns at most, and the blocks that a thread keeps (2.1 MB). So a column of a block of float32 has 256
// bytes. With 64 and 128 bytes, 4096 x 4096 elements took 0.80 and 0.85 ns each, with 256 bytes 0.60 (Zen 4, one
// thread).
inline constexpr std::int64_t kBlockBytes = 32 << 10, kMaxBlockColumns = 128;
inline constexpr int kPanelBlocks = 68;
// Columns are prefetched into L2 this many ahead, up to so many bytes of each. With columns of 64 bytes, prefetching
// took the time of 4096 x 4096 elements from 1.2 ns each to 0.8; with columns of 256 bytes it is 0.50.
inline constexpr std::int64_t kPrefetchColumns = 24, kPrefetchedBytes = 256;
// Gradients are gathered in blocks if neighbours along the last axis are at least kBlockedFrom bytes apart, and blocks
// have at least kBlockedColumns columns.
inline constexpr std::int64_t kBlockedFrom = 32, kBlockedColumns = 4;
// Where rows have more elements than kPanelColumns, chunks are visited window by window.
inline constexpr std::int64_t kPanelColumns = 8192, kPanelWindow = 4096;

// Bytes of a cache line.
inline constexpr std::int64_t kLine = 64;

// With a row gradient, listed rows are prefetched this many ahead, up to so many bytes of each stream. Adam on 1 % of
// the rows of a table of 4 million x 64: 271 ns a row without, 174 to 181 with 2 to 32 rows ahead (Zen 4, one thread,
// beside other load).
inline constexpr std::int64_t kPrefetchRows = 8, kPrefetchedRowBytes = 1024;

// The kernel is called for rows of a strided tensor with at least this many elements. Not measured since it was chosen.
inline constexpr std::int64_t kRowWorthACall = 32;

// Pieces of at least this many elements are updated from the parameter's next cache line on, after the elements before
// it. NumPy's large arrays all begin 16 bytes after a line, so the gradient and the states mostly become aligned with
// it, and no register is loaded from two lines. Saves 4 to 6 % of a step on 16 million elements, up to 14 % on a
// million (Zen 4, one thread).
inline constexpr std::int64_t kAlignFrom = 4096;

// Steps that move fewer bytes stay on the calling thread. With workers awake, two threads were faster than one from 260
// KB (SGD) and 150 KB (Adam) on (Zen 4).
inline constexpr std::int64_t kBytesWorthSharing = 256 << 10;

// Steps that move at least this many bytes wake sleeping workers. Two threads were faster from 7 MB (SGD) and 8 MB
// (Adam) on (Zen 4).
inline constexpr std::int64_t kBytesWorthWaking = 8 << 20;

// The approximate number of elements of a task in a step with `elements` elements: small enough that threads finish
// together, large enough that claiming a task costs little (20 ns, while 4096 elements take 1 us and more).
constexpr std::int64_t grain(std::int64_t elements) {
  return elements < 256 * 4096 ? 4096 : elements > 256 * 65536 ? 65536 : elements / 256;
}

// How long a worker spins before it sleeps, in microseconds: about as long as waking it takes (10 to 50 us in a virtual
// machine of two cores, Linux 6.18).
inline constexpr int kSpinMicroseconds = 50;

// How long a thread waits for the others before it takes their indices, in microseconds: such work comes with cache
// lines of the other core, which costs more than waiting for a thread that is nearly done (Momentum on 100 000 elements
// and two threads took a tenth less time).
inline constexpr int kStealDelayMicroseconds = 3;

}  // namespace gradstep::cpu
