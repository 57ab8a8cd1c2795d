#pragma once

// Code for one element is always inlined: the linker must never keep an AVX-512 copy of a shared inline function for
// older machines.
#if defined(__CUDACC__)
#define GS_INLINE __forceinline__ __host__ __device__
#define GS_UNROLL(count)  // nvcc unrolls by itself
// For templates that call a function passed to them, which on the host may be a host function.
#define GS_HOST_FUNCTIONS _Pragma("nv_exec_check_disable")
#else
#define GS_INLINE inline __attribute__((always_inline))
#define GS_UNROLL_(text) _Pragma(#text)
#define GS_UNROLL(count) GS_UNROLL_(GCC unroll count)
#define GS_HOST_FUNCTIONS
#endif
#define GS_CALLED [[gnu::noinline]] static               // for long functions in files compiled per instruction set
#define GS_ALWAYS_INLINE __attribute__((always_inline))  // for lambdas and host-only functions

#define GS_RESTRICT __restrict__
