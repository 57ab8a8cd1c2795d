#pragma once

// Element code is always inlined: a shared inline function compiled for AVX-512 must never be the copy that the linker
// keeps for older machines.
#if defined(__CUDACC__)
#define GS_INLINE __forceinline__ __host__ __device__
#else
#define GS_INLINE inline __attribute__((always_inline))
#endif
#define GS_ALWAYS_INLINE __attribute__((always_inline))  // for a lambda

#define GS_RESTRICT __restrict__
