#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "codecs/all.h"
#include "exec/streams.h"
#include "rules/all.h"

// The work that a step hands to a backend.
namespace gradstep {

// The blocks in which a processor gathers a strided gradient: `rows` indices of one axis by `columns` of the `plane`
// elements of the axes after it.
struct Blocks {
  int axis = -1;  // none
  std::int64_t rows = 0, columns = 0, plane = 0;
  std::int64_t down = 0, across = 0;  // the number of blocks along the axis, and across the plane
};

// The order in which a tensor's elements are traversed, last axis fastest, and each stream's strides and storage.
struct Layout {
  std::vector<std::int64_t> shape;                 // never empty
  std::vector<std::int64_t> strides[kMaxStreams];  // bytes; empty: packed and aligned, or no such stream
  DType dtypes[kMaxStreams] = {};
  float* scales[kMaxStreams] = {};    // block scales, for types that have them
  StorageKey storage = kNoStreams;    // dtypes of the existing streams of kernels
  std::byte* average = nullptr;       // null: there is none
  std::uint32_t tensor = 0;           // its index in the optimizer, for random bits
  std::int64_t first = 0;             // its first element's index in the whole that it is a part of, likewise
  Blocks blocks;                      // of the gradient
  std::vector<std::uint32_t> chunks;  // the order in which a processor visits them; empty: ascending
  bool native = true;                 // whether all streams are stored in the compute type
  bool packed = true;                 // whether no stream is strided
  // Null, or the indices of the rows of a row gradient, ascending, followed by a zero. The first axis of `shape` then
  // counts these rows: the gradient has no others, and the other streams, which are all strided, go through the list.
  const std::int64_t* rows = nullptr;

  std::int64_t size() const {
    std::int64_t product = 1;
    for (const std::int64_t extent : shape) product *= extent;
    return product;
  }

  // Whether there are streams besides those that every rule has.
  bool has_more = false;

  // Whether native kernels can work on all streams in place.
  bool plain() const { return native && packed && !has_more; }
};

// How a step rounds the values that it stores, and how it averages parameters.
struct StorePolicy {
  bool stochastic = false;  // rounding to types other than the compute type
  std::uint32_t step = 0;
  std::uint64_t seed = 0;
  double ema = 0;  // the decay of the average

  StorePolicy() = default;
  GS_INLINE StorePolicy(const rules::Common::Options& asked, std::int64_t t)
      : stochastic(asked.stochastic_rounding == asked.stochastic_rounding),
        step(static_cast<std::uint32_t>(t)),
        seed(stochastic ? static_cast<std::uint64_t>(asked.stochastic_rounding) : 0),
        ema(asked.ema) {}
};

// The update of one step, for one or more tensors.
struct PreparedUpdate : StorePolicy {
  rules::Key key;
  alignas(16) std::byte element[rules::kMaxElementUpdate];  // the key's rules::ElementUpdate, with this step's scalars
};

// One tensor's part in a step: one cache line, because there may be thousands.
struct alignas(64) TensorJob {
  const PreparedUpdate* update = nullptr;   // null: the tensor takes no part
  std::byte* streams[kKernelStreams] = {};  // null: no such stream
  const Layout* layout = nullptr;           // null: kernels can work on all streams in place
};
static_assert(sizeof(TensorJob) == 64);

// Row u of `to` is the sum of rows places[first[u]] ... places[first[u + 1] - 1] of a gradient, added in this order in
// the compute type. Rows have `length` elements.
struct RowSums {
  const std::int64_t *first, *places;
  std::int64_t length;
  std::byte* to;
};

}  // namespace gradstep
