#pragma once

#include <cstdint>

#include "base/macros.h"
#include "cpu/tuning.h"

// Included by files compiled once per instruction set, hence the anonymous namespace. cpu/prefetch_choice.cpp decides
// by the processor's vendor whether loops prefetch.
namespace gradstep::cpu {
namespace {

constexpr std::int64_t kCacheLine = 64;

// The number of elements that one prefetch covers.
template <class T>
constexpr std::int64_t kPrefetchRun = kPrefetchBytes / static_cast<std::int64_t>(sizeof(T));

template <std::int64_t kItems, class T>
GS_INLINE void prefetch(const T* stream) {
  for (std::int64_t byte = 0; byte < kItems * static_cast<std::int64_t>(sizeof(T)); byte += kCacheLine) {
    __builtin_prefetch(reinterpret_cast<const char*>(stream) + kPrefetchDistance + byte);
  }
}

}  // namespace
}  // namespace gradstep::cpu
