// THE loop, compiled once per row of cmake/isa.cmake, as cpu/conversions.cpp is. Everything is in an anonymous
// namespace and always inlined, so that nothing compiled for one instruction set can be linked into another's code (a
// test reads the symbols).
#include "cpu/kernel.h"
#include "cpu/prefetch.h"

namespace gradstep::cpu {
namespace {

template <class Element, class T = typename Element::T>
void loop(const Element element, std::int64_t size, bool prefetches, T* GS_RESTRICT p, const T* GS_RESTRICT g,
          T* GS_RESTRICT s0, T* GS_RESTRICT s1, T* GS_RESTRICT s2) {
  const auto update = [=](std::int64_t i) GS_ALWAYS_INLINE {
    T w = p[i];
    T a = 0, b = 0, c = 0;
    if constexpr (Element::keeps(0)) a = s0[i];
    if constexpr (Element::keeps(1)) b = s1[i];
    if constexpr (Element::keeps(2)) c = s2[i];
    if constexpr (Element::kStates == 0) element(w, g[i]);
    if constexpr (Element::kStates == 1) element(w, g[i], a);
    if constexpr (Element::kStates == 2) element(w, g[i], a, b);
    if constexpr (Element::kStates == 3) element(w, g[i], a, b, c);
    p[i] = w;
    if constexpr (Element::keeps(0)) s0[i] = a;
    if constexpr (Element::keeps(1)) s1[i] = b;
    if constexpr (Element::keeps(2)) s2[i] = c;
  };

  // What lies behind these elements is not prefetched: it may be in another core's cache.
  const std::int64_t last_prefetch = prefetches ? size - kPrefetchReach<T> : -1;
  std::int64_t begin = 0;
  for (; begin + kPrefetchRun<T> <= size; begin += kPrefetchRun<T>) {
    if (begin <= last_prefetch) {
      prefetch(p + begin);
      prefetch(g + begin);
      if constexpr (Element::keeps(0)) prefetch(s0 + begin);
      if constexpr (Element::keeps(1)) prefetch(s1 + begin);
      if constexpr (Element::keeps(2)) prefetch(s2 + begin);
    }
    for (std::int64_t i = begin; i < begin + kPrefetchRun<T>; ++i) update(i);
  }
  for (std::int64_t i = begin; i < size; ++i) update(i);
}

template <class Element>
void kernel(const void* element, std::byte* const* streams, std::int64_t begin, std::int64_t end, bool prefetches) {
  using T = typename Element::T;
  const auto at = [=](int s) { return streams[s] == nullptr ? nullptr : reinterpret_cast<T*>(streams[s]) + begin; };
  loop(*static_cast<const Element*>(element), end - begin, prefetches, at(0), at(1), at(2), at(3), at(4));
}

struct Find {
  template <class Element>
  GS_INLINE Kernel visit() const {
    return &kernel<Element>;
  }
};

}  // namespace

#define GS_JOIN_(a, b) a##b
#define GS_JOIN(a, b) GS_JOIN_(a, b)

// cpu/isa.cpp declares it for every row of the table.
Kernel GS_JOIN(find_kernel_, GS_ISA)(const rules::Key& key) { return rules::visit(key, Find{}); }

}  // namespace gradstep::cpu
