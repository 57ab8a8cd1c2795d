#pragma once

// Code for one element is always inlined: a shared inline function compiled for AVX-512 must never be the copy that the
// linker keeps for older machines.
#if defined(__CUDACC__)
#define GS_INLINE __forceinline__ __host__ __device__
#define GS_UNROLL(count)  // nvcc does so by itself
// Before a template that calls what it is given: on the host that may be a host function.
#define GS_HOST_FUNCTIONS _Pragma("nv_exec_check_disable")
#else
#define GS_INLINE inline __attribute__((always_inline))
#define GS_UNROLL_(text) _Pragma(#text)
#define GS_UNROLL(count) GS_UNROLL_(GCC unroll count)
#define GS_HOST_FUNCTIONS
#endif
#define GS_CALLED [[gnu::noinline]] static               // for what is long, in files of one instruction set
#define GS_ALWAYS_INLINE __attribute__((always_inline))  // for a lambda, and for what is of no use on a device

#define GS_RESTRICT __restrict__
