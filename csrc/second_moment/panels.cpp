#include "second_moment/panels.h"

#include <algorithm>
#include <new>

#include "common/cpu.h"
#include "common/numeric.h"

namespace easyedit_fast {
namespace {

using std::int64_t;
using std::uint32_t;

// Steps that are packed at a time: so many rows of x are read side by side.
constexpr int64_t kStepsPerChunk = 16;
constexpr int64_t kBytesPerGroup = 8 << 20;

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Steps to pack into every panel of a block.
struct Chunk {
  const SecondMoment& params;
  const int64_t* rows;  // their numbers
  int64_t count;        // of rows; what is missing to the steps is zero
  int64_t steps;
  int64_t panels;
  int64_t panel_words;
  uint32_t* right;  // the chunk's place in the first panel
  uint32_t* left;   // the same for transposed blocks, or null
};

// Elements [first, first + kLanes) of a row as bits, zeros beyond the last column or for no row.
template <class T, int kLanes, class Convert>
EASYEDIT_FAST_INLINE void read_lanes(const SecondMoment& params, const T* row, int64_t first, uint32_t* lanes,
                                     Convert convert) {
  if (row != nullptr && params.column_stride == 1 && first + kLanes <= params.columns) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = convert(row[first + lane]);
    return;
  }
  const int64_t count = row == nullptr ? 0 : std::min<int64_t>(kLanes, params.columns - first);
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    lanes[lane] = lane < count ? convert(row[(first + lane) * params.column_stride]) : 0;
  }
}

template <class T>
EASYEDIT_FAST_INLINE const T* row_of(const Chunk& chunk, int64_t k) {
  if (k >= chunk.count) return nullptr;
  return static_cast<const T*>(chunk.params.x) + chunk.rows[k] * chunk.params.row_stride;
}

template <class T, int kLanes>
EASYEDIT_FAST_INLINE void pack_floats(const Chunk& chunk) {
  const auto convert = [](T value) __attribute__((always_inline)) { return bits_of(to_float(value)); };
  for (int64_t panel = 0; panel < chunk.panels; ++panel) {
    uint32_t* target = chunk.right + panel * chunk.panel_words;
    for (int64_t step = 0; step < chunk.steps; ++step, target += kLanes) {
      read_lanes<T, kLanes>(chunk.params, row_of<T>(chunk, step), panel * kLanes, target, convert);
    }
  }
}

// Packs rows as float32.
template <class T>
struct PackFloats {
  static EASYEDIT_FAST_INLINE uint32_t run(const Chunk& chunk, int lanes) {
    if (lanes == 16) {
      pack_floats<T, 16>(chunk);
    } else {
      pack_floats<T, 8>(chunk);
    }
    return 0;
  }
};

// Packs rows two by two; returns the largest magnitude, as bits.
struct PackPairs {
  static EASYEDIT_FAST_INLINE uint32_t run(const Chunk& chunk, int) {
    constexpr int kLanes = 16;
    const auto convert = [](Bfloat16 value) __attribute__((always_inline)) { return uint32_t{value.bits}; };
    uint32_t largest[kLanes] = {};
    for (int64_t panel = 0; panel < chunk.panels; ++panel) {
      uint32_t* target = chunk.right + panel * chunk.panel_words;
      for (int64_t step = 0; step < chunk.steps; ++step, target += kLanes) {
        uint32_t low[kLanes], high[kLanes];
        read_lanes<Bfloat16, kLanes>(chunk.params, row_of<Bfloat16>(chunk, 2 * step), panel * kLanes, low, convert);
        read_lanes<Bfloat16, kLanes>(chunk.params, row_of<Bfloat16>(chunk, 2 * step + 1), panel * kLanes, high,
                                     convert);
        for (int lane = 0; lane < kLanes; ++lane) {
          target[lane] = low[lane] | high[lane] << 16;
          largest[lane] = std::max({largest[lane], low[lane] & 0x7fffu, high[lane] & 0x7fffu});
        }
      }
      if (chunk.left == nullptr) continue;
      const uint32_t* source = chunk.right + panel * chunk.panel_words;
      uint32_t* transposed = chunk.left + panel * chunk.panel_words;
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int64_t step = 0; step < kStepsPerChunk; ++step) {
          transposed[lane * kStepsPerChunk + step] = source[step * kLanes + lane];
        }
      }
    }
    return *std::max_element(largest, largest + kLanes);
  }
};

using Pack = uint32_t (*)(const Chunk&, int);

Pack choose_pack(const TileKernel& kernel, Dtype dtype) {
  if (kernel.terms_per_step == 2) return compiled<PackPairs>();
  return dispatch(dtype, [](auto tag) -> Pack { return compiled<PackFloats<typename decltype(tag)::Type>>(); });
}

// Whether sums of products of numbers up to this one (bfloat16, as bits) lose nothing of note where
// what is below 2^-126 counts as zero: 2^40 such products are 2^-86, and the largest is 2^-60.
bool far_above_zero(uint32_t largest) {
  constexpr uint32_t kSmall = (127u - 30u) << 7;  // 2^-30
  return largest == 0 || largest >= kSmall;
}

}  // namespace

// Whole cache lines: a vector that straddles two of them takes two loads.
constexpr std::align_val_t kAlignment{64};

void Panels::Free::operator()(uint32_t* words) const { operator delete[](words, kAlignment); }

Panels::Words Panels::allocate(int64_t words) {
  return Words(static_cast<uint32_t*>(operator new[](static_cast<std::size_t>(words) * 4, kAlignment)));
}

Panels::Panels(const SecondMoment& params, int64_t rows) : params_(params) {
  const int64_t fitting = kBytesPerGroup / (params.columns * static_cast<int64_t>(sizeof(float)));
  rows_per_group_ = std::min(rows, std::max(kMaxTermsPerBlock, fitting / kMaxTermsPerBlock * kMaxTermsPerBlock));
}

bool Panels::pack(const TileKernel& kernel, const int64_t* rows, int64_t count, int threads) {
  kernel_ = &kernel;
  const int64_t terms = kernel.terms_per_step;
  steps_ = round_up((count + terms - 1) / terms, kernel.steps_multiple);
  padded_columns_ = round_up(params_.columns, std::max(kernel.lanes, kernel.rows));
  const int64_t words = steps_ * padded_columns_;
  if (words > words_) {
    right_ = allocate(words);
    if (kernel.transposed_left) left_ = allocate(words);
    words_ = words;
  }
  const Pack pack = choose_pack(kernel, params_.dtype);
  const int64_t chunks = (steps_ + kStepsPerChunk - 1) / kStepsPerChunk;
  uint32_t largest = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(max : largest)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t step = chunk * kStepsPerChunk;
    const int64_t block = step / kernel.steps_per_block;
    const int64_t offset = place(block, 0) + step % kernel.steps_per_block * kernel.lanes;
    const int64_t steps = std::min(kStepsPerChunk, steps_ - step);
    largest = std::max(largest, pack({params_, rows + step * terms, std::min(count - step * terms, steps * terms),
                                      steps, padded_columns_ / kernel.lanes, panel_words(block), right_.get() + offset,
                                      kernel.transposed_left ? left_.get() + offset : nullptr},
                                     kernel.lanes));
  }
  return terms == 1 || far_above_zero(largest);
}

int64_t Panels::blocks() const { return (steps_ + kernel_->steps_per_block - 1) / kernel_->steps_per_block; }

int64_t Panels::steps(int64_t block) const {
  return std::min(kernel_->steps_per_block, steps_ - block * kernel_->steps_per_block);
}

int64_t Panels::place(int64_t block, int64_t column) const {
  return block * kernel_->steps_per_block * padded_columns_ + column / kernel_->lanes * panel_words(block);
}

const uint32_t* Panels::left(int64_t block, int64_t row) const {
  const uint32_t* panels = kernel_->transposed_left ? left_.get() : right_.get();
  return panels + place(block, row) + row % kernel_->lanes;
}

const uint32_t* Panels::right(int64_t block, int64_t column) const { return right_.get() + place(block, column); }

}  // namespace easyedit_fast
