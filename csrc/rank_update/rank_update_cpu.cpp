#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>

#include "common/cpu.h"
#include "common/numeric.h"
#include "common/tile_kernel.h"
#include "rank_update/rank_update.h"
#include "rank_update/thin_rows.h"

namespace easyedit_fast {
namespace {

using std::int64_t;
using std::uint64_t;

// Rows of weight that one task updates, and bytes of packed input factor that stay in the cache.
constexpr int64_t kRowsPerTask = 32;
constexpr int64_t kBytesPerBlock = 256 * 1024;

enum class Pass { kCheck, kWrite };

// Panels [ceil(length / width), rank, width] of a factor seen as [length, rank], padded with zeros.
class PackedFactor {
 public:
  PackedFactor(const StridedMatrix& factor, int64_t length, int64_t rank, int64_t width)
      : panel_size_(rank * width), width_(width) {
    const int64_t panels = (length + width - 1) / width;
    data_.reset(new float[static_cast<std::size_t>(panels * panel_size_)]);
    for (int64_t panel = 0; panel < panels; ++panel) {
      const int64_t first = panel * width;
      const int64_t count = std::min(width, length - first);
      for (int64_t k = 0; k < rank; ++k) {
        const float* source = factor.data + first * factor.row_stride + k * factor.column_stride;
        float* target = data_.get() + panel * panel_size_ + k * width;
        for (int64_t i = 0; i < count; ++i) target[i] = source[i * factor.row_stride];
        std::fill(target + count, target + width, 0.0f);
      }
    }
  }

  // The place of an element in its panel, and the distance between panels.
  const float* place_of(int64_t element) const {
    return data_.get() + element / width_ * panel_size_ + element % width_;
  }
  int64_t panel_size() const { return panel_size_; }

 private:
  std::unique_ptr<float[]> data_;
  int64_t panel_size_;
  int64_t width_;
};

struct Task {
  const RankUpdate& params;
  const PackedFactor& left;   // output_factor
  const PackedFactor& right;  // input_factor
  const TileKernel& kernel;
};

// Adds sum [count] to a piece of one row of weight, or only looks; says whether the results are finite.
template <class T, Pass kPass, Rounding kRounding>
EASYEDIT_FAST_INLINE bool update_row(const float* sum, T* weight, int64_t count, uint64_t number,
                                     uint64_t number_stride, uint64_t seed) {
  int bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float value = to_float(weight[i]) + sum[i];
    T result;
    if constexpr (kRounding == Rounding::kStochastic) {
      result = round_stochastic<T>(value, random_word(number + static_cast<uint64_t>(i) * number_stride, seed));
    } else {
      result = round_nearest<T>(value);
    }
    bad |= static_cast<int>(!is_finite(result));
    if constexpr (kPass == Pass::kWrite) weight[i] = result;
  }
  return bad == 0;
}

template <class T, Pass kPass, Rounding kRounding>
EASYEDIT_FAST_INLINE bool update_tile(const Task& task, int64_t row, int64_t column) {
  const RankUpdate& params = task.params;
  const int64_t rows = std::min<int64_t>(task.kernel.rows, params.rows - row);
  const int64_t columns = std::min<int64_t>(task.kernel.columns, params.columns - column);
  alignas(64) float tile[kMaxTileElements];
  const int panels = static_cast<int>((columns + task.kernel.lanes - 1) / task.kernel.lanes);
  task.kernel.multiply(params.rank, task.left.place_of(row), task.right.place_of(column), task.right.panel_size(),
                       panels, tile);
  bool finite = true;
  for (int64_t r = 0; r < rows; ++r) {
    T* weight = static_cast<T*>(params.weight) + (row + r) * params.row_stride + column;
    const int64_t number = (row + r) * params.number_row_stride + column * params.number_column_stride;
    finite &=
        update_row<T, kPass, kRounding>(tile + r * task.kernel.columns, weight, columns, static_cast<uint64_t>(number),
                                        static_cast<uint64_t>(params.number_column_stride), params.seed);
  }
  return finite;
}

// Rows [first, last) of weight, in blocks of columns whose part of the input factor stays cached.
template <class T, Pass kPass, Rounding kRounding>
EASYEDIT_FAST_INLINE bool update_rows(const Task& task, int64_t first, int64_t last) {
  const int64_t width = task.kernel.columns;
  const int64_t panel_bytes = task.params.rank * width * static_cast<int64_t>(sizeof(float));
  const int64_t block = std::max<int64_t>(1, kBytesPerBlock / panel_bytes) * width;
  bool finite = true;
  for (int64_t begin = 0; begin < task.params.columns; begin += block) {
    const int64_t end = std::min(begin + block, task.params.columns);
    for (int64_t row = first; row < last; row += task.kernel.rows) {
      for (int64_t column = begin; column < end; column += width) {
        finite &= update_tile<T, kPass, kRounding>(task, row, column);
      }
    }
  }
  return finite;
}

template <class T, Pass kPass, Rounding kRounding>
struct UpdateRows {
  static EASYEDIT_FAST_INLINE bool run(const Task& task, int64_t first, int64_t last) {
    return update_rows<T, kPass, kRounding>(task, first, last);
  }
};

// Updates rows [first, last) of weight, or only looks; says whether the results are finite.
using AnyRows = std::function<bool(Pass, int64_t, int64_t)>;

template <Pass kPass>
auto choose_update_rows(const RankUpdate& params) {
  return dispatch(params.dtype, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    return params.rounding == Rounding::kStochastic ? compiled<UpdateRows<T, kPass, Rounding::kStochastic>>()
                                                    : compiled<UpdateRows<T, kPass, Rounding::kNearest>>();
  });
}

bool run_pass(const AnyRows& update, Pass pass, int64_t rows, int threads) {
  std::atomic<bool> finite{true};
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t first = 0; first < rows; first += kRowsPerTask) {
    if (!update(pass, first, std::min(first + kRowsPerTask, rows))) finite.store(false, std::memory_order_relaxed);
  }
  return finite.load();
}

// Largest magnitude of one row of weight, as bits: a NaN or infinity is above every number.
template <class T>
EASYEDIT_FAST_INLINE std::uint32_t largest_bits(const T* row, int64_t count) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint16_t>;
  Bits largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, row + i, sizeof bits);
    bits = static_cast<Bits>(bits & (static_cast<Bits>(~Bits{0}) >> 1));
    largest = std::max(largest, bits);
  }
  return largest;
}

template <class T>
struct LargestBits {
  static EASYEDIT_FAST_INLINE std::uint32_t run(const T* row, int64_t count) { return largest_bits(row, count); }
};

template <class T>
double largest_weight(const RankUpdate& params, int threads) {
  const T* weight = static_cast<const T*>(params.weight);
  std::uint32_t largest = 0;
  const auto largest_bits_of_row = compiled<LargestBits<T>>();
#pragma omp parallel for schedule(static) reduction(max : largest) num_threads(threads)
  for (int64_t row = 0; row < params.rows; ++row) {
    largest = std::max(largest, largest_bits_of_row(weight + row * params.row_stride, params.columns));
  }
  T value;
  std::memcpy(&value, &largest, sizeof value);  // little-endian: the low half of the word
  return to_float(value);
}

// Largest magnitude of column k of a factor seen as [length, rank]; NaN where it holds one.
double largest_of_factor(const StridedMatrix& factor, int64_t length, int64_t k) {
  const float* column = factor.data + k * factor.column_stride;
  float largest = 0.0f;
  bool nan = false;
  for (int64_t i = 0; i < length; ++i) {
    const float magnitude = std::fabs(column[i * factor.row_stride]);
    nan |= std::isnan(magnitude);
    largest = std::max(largest, magnitude);
  }
  return nan ? std::nan("") : largest;
}

StridedMatrix transposed(const StridedMatrix& matrix) { return {matrix.data, matrix.column_stride, matrix.row_stride}; }

// Whether |w| + Σ_k max|output_factor_k| max|input_factor_k| stays so far below the largest number of
// the dtype that no sum can overflow. It spares the second product that the full check costs.
bool surely_finite(const RankUpdate& params, int threads) {
  constexpr double kLargest[] = {3.4028234663852886e38, 65504.0, 3.3895313892515355e38};
  constexpr double kMargin = 1.25;       // for the rounding of sums of at most
  constexpr int64_t kMaxRank = 1 << 20;  // so many terms: (1 + 2^-24)^(2^20) < 1.07
  if (params.rank > kMaxRank) return false;
  double bound =
      dispatch(params.dtype, [&](auto tag) { return largest_weight<typename decltype(tag)::Type>(params, threads); });
  for (int64_t k = 0; k < params.rank; ++k) {
    bound += largest_of_factor(params.output_factor, params.rows, k) *
             largest_of_factor(transposed(params.input_factor), params.columns, k);
  }
  return bound * kMargin < kLargest[static_cast<int>(params.dtype)];
}

bool run(const RankUpdate& params, const AnyRows& update, bool check_first, int threads) {
  if (check_first && !surely_finite(params, threads) && !run_pass(update, Pass::kCheck, params.rows, threads)) {
    return false;
  }
  return run_pass(update, Pass::kWrite, params.rows, threads);
}

bool run_thin(const RankUpdate& params, const ThinRows& thin, bool check_first, int threads) {
  const PackedFactor left(params.output_factor, params.rows, params.rank, kThinRows);
  const PackedFactor right(transposed(params.input_factor), params.columns, params.rank, thin.lanes);
  const auto update = [&](Pass pass, int64_t first, int64_t last) {
    return thin.update(params, left.place_of(0), right.place_of(0), first, last, pass == Pass::kWrite);
  };
  return run(params, update, check_first, threads);
}

bool run_tiles(const RankUpdate& params, bool check_first, int threads) {
  const TileKernel& kernel = float_kernel();
  const PackedFactor left(params.output_factor, params.rows, params.rank, kernel.lanes);
  const PackedFactor right(transposed(params.input_factor), params.columns, params.rank, kernel.lanes);
  const Task task{params, left, right, kernel};
  const auto check = choose_update_rows<Pass::kCheck>(params);
  const auto write = choose_update_rows<Pass::kWrite>(params);
  const auto update = [&](Pass pass, int64_t first, int64_t last) {
    return (pass == Pass::kCheck ? check : write)(task, first, last);
  };
  return run(params, update, check_first, threads);
}

}  // namespace

bool rank_update_cpu(const RankUpdate& given, bool check_first, int given_threads) {
  const RankUpdate params = with_contiguous_rows(given);
  if (params.rows == 0 || params.columns == 0 || params.rank == 0) return true;
  const double elements = static_cast<double>(params.rows) * static_cast<double>(params.columns);
  const int threads = useful_threads(elements * static_cast<double>(params.rank), given_threads);
  const ThinRows thin = thin_rows(params);
  return thin.update == nullptr ? run_tiles(params, check_first, threads)
                                : run_thin(params, thin, check_first, threads);
}

}  // namespace easyedit_fast
