#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "step/array.h"
#include "step/backend.h"

namespace gradstep::step {

// A view of an array of integers of one axis.
struct IndexArray {
  const std::byte* data;
  int item_size;
  bool is_signed;
  std::int64_t size, stride;                               // in bytes
  std::shared_ptr<const std::vector<std::int64_t>> owner;  // of the memory, if it is a copy
};

// A gradient of some rows of a parameter: the indices of the rows, and an array with a row for each. Rows that are
// named several times are summed. It is used again for each step, so that memory is allocated once.
class RowGradient {
 public:
  // Steps read both arrays later, but not after sum().
  void assign(const IndexArray& indices, const Array& values) {
    indices_ = indices;
    values_ = KeptArray(values);
  }

  // Reads the indices. Throws std::invalid_argument where one is not less than `rows`, or negative; `name` is that of
  // the gradient in the message.
  void read(std::int64_t rows, const std::string& name);

  // After read(): the indices in ascending order, each once, followed by a zero.
  const std::int64_t* rows() const { return rows_.data(); }
  std::int64_t count() const { return static_cast<std::int64_t>(rows_.size()) - 1; }

  // After read(): the rows of the gradient in this order. Those that were named in another order are copied and summed,
  // in the compute type and in the order of occurrence. The result is valid until the next call.
  Array sum(Compute compute, Backend& backend);

 private:
  struct Occurrence {
    std::int64_t row, place;
  };
  void sort(std::int64_t largest);

  IndexArray indices_{};
  KeptArray values_;
  std::vector<std::int64_t> rows_{0};
  bool is_sorted_ = true;                      // whether the indices were strictly ascending; else:
  std::vector<Occurrence> order_, scratch_;    // sorted by row, then by place
  std::vector<std::int64_t> first_, places_;   // where in places_ the occurrences of each row begin; their places
  std::shared_ptr<std::byte> sums_;            // in the backend's memory
  std::size_t room_ = 0;                       // its size in bytes
  std::vector<std::int64_t> shape_, strides_;  // of the result
};

}  // namespace gradstep::step
