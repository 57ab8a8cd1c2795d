#pragma once

// Element code is always inlined: a shared inline function compiled for AVX-512 must never be the copy that the linker
// keeps for older machines.
#if defined(__CUDACC__)
#define GS_INLINE __forceinline__ __host__ __device__
#elif defined(_MSC_VER)
#define GS_INLINE __forceinline
#else
#define GS_INLINE inline __attribute__((always_inline))
#endif

#if defined(_MSC_VER)
#define GS_RESTRICT __restrict
#else
#define GS_RESTRICT __restrict__
#endif
