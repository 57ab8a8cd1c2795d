// THE loop, compiled once per row of cmake/isa.cmake. Everything is in an anonymous namespace and always inlined, so
// that nothing compiled for one instruction set can be linked into another's code (a test reads the symbols).
#include "cpu/kernel.h"

namespace gradstep::cpu {
namespace {

template <class Element, class T = typename Element::T>
void loop(const Element element, std::size_t size, T* GS_RESTRICT p, const T* GS_RESTRICT g, T* GS_RESTRICT s0,
          T* GS_RESTRICT s1, T* GS_RESTRICT s2) {
  for (std::size_t i = 0; i < size; ++i) {
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
  }
}

template <class Element>
void kernel(const Tile& tile, const void* element) {
  using T = typename Element::T;
  loop(*static_cast<const Element*>(element), tile.size, static_cast<T*>(tile.param), static_cast<const T*>(tile.grad),
       static_cast<T*>(tile.states[0]), static_cast<T*>(tile.states[1]), static_cast<T*>(tile.states[2]));
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
