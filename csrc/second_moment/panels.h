// The rows of x, packed once for all tiles of out.
#pragma once

#include <cstdint>
#include <memory>

#include "common/tile_kernel.h"
#include "second_moment/second_moment.h"

namespace easyedit_fast {

// A group of rows of x in blocks of steps; a block holds the panels of all columns, one after another,
// and the last panel is padded with zeros.
class Panels {
 public:
  // Rows to pack at a time, of as many as there are in all.
  Panels(const SecondMoment& params, std::int64_t rows);

  std::int64_t rows_per_group() const { return rows_per_group_; }

  // Packs `count` rows, given by their numbers, for a kernel. False where a bfloat16 kernel, which takes
  // numbers below 2^-126 for zero, would lose what float32 keeps.
  bool pack(const TileKernel& kernel, const std::int64_t* rows, std::int64_t count, int threads);

  const TileKernel& kernel() const { return *kernel_; }
  std::int64_t blocks() const;
  std::int64_t steps(std::int64_t block) const;
  std::int64_t panel_words(std::int64_t block) const { return steps(block) * kernel_->lanes; }

  // Operands of the kernel for the tile that begins at a row, or a column, of out.
  const std::uint32_t* left(std::int64_t block, std::int64_t row) const;
  const std::uint32_t* right(std::int64_t block, std::int64_t column) const;

 private:
  struct Free {
    void operator()(std::uint32_t* words) const;
  };
  using Words = std::unique_ptr<std::uint32_t[], Free>;

  static Words allocate(std::int64_t words);
  std::int64_t place(std::int64_t block, std::int64_t column) const;

  const SecondMoment& params_;
  std::int64_t rows_per_group_;
  const TileKernel* kernel_ = nullptr;
  std::int64_t steps_ = 0;
  std::int64_t padded_columns_ = 0;
  std::int64_t words_ = 0;
  Words right_;
  Words left_;  // where the kernel wants it transposed
};

}  // namespace easyedit_fast
