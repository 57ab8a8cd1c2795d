// THE loop, compiled once per row of cmake/isa.cmake, as is cpu/conversions.cpp. Everything is in an anonymous
// namespace, and inlined or called only within it, so that the linker cannot use code compiled for one instruction set
// in another's code (a test reads the symbols).
#include "cpu/access.h"
#include "cpu/kernel.h"

namespace gradstep::cpu {
namespace {

// Updates the elements at position j of a run: one register of them, or one element, according to V.
template <class V, class ElementUpdate, class P, class G, class C, class... S>
GS_INLINE void update_at(std::int64_t j, const ElementUpdate& element, P& p, const G& g, C& copy, S&... states) {
  const auto apply = [&](V w, V gradient, auto... x) GS_ALWAYS_INLINE {
    element(w, gradient, x...);
    p.store(j, w);
    (states.store(j, x), ...);
    copy.store(j, w);
  };
  apply(p.template load<V>(j), g.template load<V>(j), states.template load<V>(j)...);
}

template <class T, bool kStateless>
struct UnrolledOf {
  using Type = Full<T>;
};
template <class T>
struct UnrolledOf<T, true> {
  static constexpr int kBytes = kRegister < kStatelessRegister ? kRegister : kStatelessRegister;
  using Type = Vector<T, kBytes / static_cast<int>(sizeof(T))>;
};

// All streams advance together: each register of elements is decoded, updated and encoded.
template <class ElementUpdate, class P, class G, class C, class... S>
GS_INLINE void loop(const ElementUpdate element, std::int64_t begin, std::int64_t end, bool prefetches, P p, G g,
                    C copy, S... states) {
  using T = typename ElementUpdate::T;
  constexpr bool kInRuns = P::kInRuns || G::kInRuns || C::kInRuns || (S::kInRuns || ...);
  constexpr std::int64_t kRun = kInRuns ? kGroup : kPrefetchRun<T>;
  constexpr std::int64_t kReach = kRun + kPrefetchDistance / (kInRuns ? 1 : static_cast<std::int64_t>(sizeof(T)));

  const auto update = [&](auto type, std::int64_t j)
                          GS_ALWAYS_INLINE { update_at<decltype(type)>(j, element, p, g, copy, states...); };
  const auto enter = [&](std::int64_t i) GS_ALWAYS_INLINE {
    p.enter(i, end), g.enter(i, end), copy.enter(i, end), (states.enter(i, end), ...);
  };
  const auto leave = [&](std::int64_t i) GS_ALWAYS_INLINE {
    p.leave(i, end), g.leave(i, end), copy.leave(i, end), (states.leave(i, end), ...);
  };
  // Memory beyond `end` is not prefetched: it may be in another core's cache.
  const std::int64_t last_prefetch = prefetches ? end - kReach : -1;
  const auto prefetch_run = [&](std::int64_t i) GS_ALWAYS_INLINE {
    if (i > last_prefetch) return;
    p.template prefetch_run<kRun>(), g.template prefetch_run<kRun>(), copy.template prefetch_run<kRun>();
    (states.template prefetch_run<kRun>(), ...);
  };

  for (std::int64_t i = begin; i < end; i += kRun) {
    const std::int64_t next = end - i < kRun ? end : i + kRun;
    enter(i);
    prefetch_run(i);
    // Only whole native runs are unrolled: unrolled decoding and encoding gave larger code that was not faster.
    constexpr bool kStateless = ElementUpdate::kStates == 0;
    using Unrolled = typename UnrolledOf<T, !kInRuns && kStateless>::Type;
    each_register<T, kInRuns ? 0 : kRun, Unrolled, kStateless ? 8 : 4, !kInRuns>(next - i, update);
    leave(next);
  }
}

template <class Codec>
[[maybe_unused]] constexpr bool kIsNone = false;
template <>
[[maybe_unused]] constexpr bool kIsNone<None> = true;

GS_INLINE NoStream open(None, std::byte* const*, const StoredStreams*, float*, int) { return {}; }
template <class Codec>
GS_INLINE Access<Codec> open(Codec, std::byte* const* streams, const StoredStreams* stored, float* block, int s) {
  if constexpr (Codec::kKind == CodecKind::kNative) {
    return {streams[s], nullptr, nullptr, nullptr};
  } else {
    return {streams[s], stored->scales[s], stored->noise[s], block};
  }
}

template <class Codec, bool kKept>
struct IfKept {
  using Type = Codec;
};
template <class Codec>
struct IfKept<Codec, false> {
  using Type = None;
};

template <int... k>
struct Indices {};
template <int kCount, int... k>
struct MakeIndices : MakeIndices<kCount - 1, kCount - 1, k...> {};
template <int... k>
struct MakeIndices<0, k...> {
  using Type = Indices<k...>;
};

// The kernel of an update for a storage combination; `k` are the indices of its states.
template <class ElementUpdate, class Codecs, class = typename MakeIndices<ElementUpdate::kStates>::Type>
struct KernelOf;

template <class ElementUpdate, class Codecs, int... k>
struct KernelOf<ElementUpdate, Codecs, Indices<k...>> {
  template <int place>
  using State = typename IfKept<typename Codecs::States::template Of<ElementUpdate::non_negative(place)>,
                                ElementUpdate::keeps(place)>::Type;

  // Calls f(parameter, gradient, copy, states...) with an accessor for each stream.
  template <class F>
  GS_INLINE static void open_all(std::byte* const* streams, const StoredStreams* stored, float (*blocks)[kBlock],
                                 const F& f) {
    const auto stream = [=](auto codec, int s) GS_ALWAYS_INLINE { return open(codec, streams, stored, blocks[s], s); };
    f(stream(typename Codecs::Parameter{}, kParameter), stream(typename Codecs::Gradient{}, kGradient),
      stream(typename Codecs::Copy{}, kCopy), stream(State<k>{}, kFirstState + k)...);
  }

  static void run(const void* element, std::byte* const* streams, std::int64_t begin, std::int64_t end, bool prefetches,
                  const StoredStreams* stored) {
    if constexpr (Codecs::kNative) {
      // Setting up the registers of run_many() is not worth while for less than a register of elements.
      if (end - begin < Full<typename ElementUpdate::T>::kLanes) return run_few(element, streams, begin, end);
    }
    run_many(element, streams, begin, end, prefetches, stored);
  }

  GS_INLINE static void run_few(const void* element, std::byte* const* streams, std::int64_t begin, std::int64_t end) {
    using T = typename ElementUpdate::T;
    const auto& update = *static_cast<const ElementUpdate*>(element);
    open_all(streams, nullptr, nullptr, [&](auto p, auto g, auto copy, auto... states) GS_ALWAYS_INLINE {
      p.enter(0, end), g.enter(0, end), (states.enter(0, end), ...);
      std::int64_t i = begin;
      if constexpr (kHasShort) {
        GS_UNROLL(1)
        for (; i + Short<T>::kLanes <= end; i += Short<T>::kLanes)
          update_at<Short<T>>(i, update, p, g, copy, states...);
      }
      GS_UNROLL(1)
      for (; i < end; ++i) update_at<T>(i, update, p, g, copy, states...);
    });
  }

  GS_CALLED void run_many(const void* element, std::byte* const* streams, std::int64_t begin, std::int64_t end,
                          bool prefetches, const StoredStreams* stored) {
    alignas(64) float blocks[kKernelStreams][kBlock];
    open_all(streams, stored, blocks, [&](auto... all) GS_ALWAYS_INLINE {
      loop(*static_cast<const ElementUpdate*>(element), begin, end, prefetches, all...);
    });
  }

  static constexpr StoredKernel stored() {
    StorageKey storage = kNoStreams;
    bool native = true, to_nearest = false;
    const auto add = [&](auto codec, int s) {
      using Codec = decltype(codec);
      if constexpr (!kIsNone<Codec>) {
        storage = with_stream(storage, s, kDTypeOf<Codec>);
        native = native && Codec::kKind == CodecKind::kNative;
        if constexpr (Codec::kKind == CodecKind::kNarrow) {
          to_nearest = to_nearest || (kStreams[s].rounded && !Codec::kRoundsEitherWay);
        }
      }
    };
    add(typename Codecs::Parameter{}, kParameter), add(typename Codecs::Gradient{}, kGradient);
    add(typename Codecs::Copy{}, kCopy), (add(State<k>{}, kFirstState + k), ...);
    return native ? StoredKernel{} : StoredKernel{storage, to_nearest, &run};
  }
};

// Updates in double, and those that bound values, have only the native kernel; other storage goes through tiles. So
// do all updates with 16-byte registers: with SSE2 the combinations of bfloat16 and float16 took 8 to 25 % longer than
// tiles (an EPYC of Zen 4), because few elements are in flight at a time; NEON has not been measured.
template <class ElementUpdate, class... AllCodecs>
constexpr Kernels kernels_of(CombinationList<AllCodecs...>) {
  if constexpr (sizeof(typename ElementUpdate::T) == sizeof(double)) {
    return {&KernelOf<ElementUpdate, Native<codecs::Float64>>::run, {}};
  } else if constexpr (ElementUpdate::kBounded || kRegister == 16) {
    return {&KernelOf<ElementUpdate, Native<codecs::Float32>>::run, {}};
  } else {
    return {&KernelOf<ElementUpdate, Native<codecs::Float32>>::run, {KernelOf<ElementUpdate, AllCodecs>::stored()...}};
  }
}

template <class ElementUpdate>
constexpr Kernels kKernels = kernels_of<ElementUpdate>(Combinations{});

struct Find {
  template <class ElementUpdate>
  GS_INLINE const Kernels* visit() const {
    return &kKernels<ElementUpdate>;
  }
};

}  // namespace

#define GS_JOIN_(a, b) a##b
#define GS_JOIN(a, b) GS_JOIN_(a, b)

// cpu/isa.cpp declares this function for every row of the table.
const Kernels& GS_JOIN(find_kernels_, GS_ISA)(const rules::Key& key) { return *rules::visit(key, Find{}); }

}  // namespace gradstep::cpu
