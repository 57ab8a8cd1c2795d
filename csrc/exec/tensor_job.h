#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "codecs/all.h"
#include "exec/streams.h"
#include "rules/all.h"

// What a step asks of whatever runs it.
namespace gradstep {

// The order in which a tensor's elements are walked, last axis fastest, and how each stream lies in it and is stored.
struct Layout {
  std::vector<std::int64_t> shape;                 // never empty
  std::vector<std::int64_t> strides[kMaxStreams];  // bytes; empty: packed and aligned, or not kept
  DType dtypes[kMaxStreams] = {};
  float* scales[kMaxStreams] = {};  // of the blocks, where the type has scales
  StorageKey storage = kNoStreams;  // dtypes of the streams that there are
  std::uint32_t tensor = 0;         // its number among the optimizer's, for random bits
  bool native = true;               // whether all streams are stored as they are computed in,
  bool packed = true;               // and whether none is strided

  // Whether a kernel can work on every stream where it lies.
  bool plain() const { return native && packed; }
};

// What is done around a rule.
struct StorePolicy {
  bool stochastic = false;  // the rounding of what is stored in another type
  std::uint32_t step = 0;
  std::uint64_t seed = 0;

  StorePolicy() = default;
  GS_INLINE StorePolicy(const rules::Common::Options& asked, std::int64_t t)
      : stochastic(asked.stochastic_rounding == asked.stochastic_rounding),
        step(static_cast<std::uint32_t>(t)),
        seed(stochastic ? static_cast<std::uint64_t>(asked.stochastic_rounding) : 0) {}
};

// What is done to each element of some tensors in one step.
struct PreparedUpdate : StorePolicy {
  rules::Key key;
  alignas(16) std::byte element[rules::kMaxElementUpdate];  // the key's rules::ElementUpdate, with the step's scalars
};

// One tensor's part in a step, in a cache line, for there may be thousands.
struct alignas(64) TensorJob {
  const PreparedUpdate* update = nullptr;  // null: none
  std::byte* streams[kMaxStreams] = {};    // null: there is none
  const Layout* layout = nullptr;          // null: a kernel can work on every stream where it lies
};
static_assert(sizeof(TensorJob) == 64);

}  // namespace gradstep
