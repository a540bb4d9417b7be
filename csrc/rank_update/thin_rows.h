// rank_update_ of a low rank: the sums of a few rows stay in registers while weight streams by once.
#pragma once

#include <cstdint>

#include "rank_update/rank_update.h"

namespace easyedit_fast {

// Rows that are updated side by side; a range of rows begins at a multiple of it.
constexpr std::int64_t kThinRows = 4;

struct ThinRows {
  int lanes;

  // Updates rows [first, last) of weight, or with write = false only looks; says whether the results
  // are finite. left holds panels [rows / kThinRows, rank, kThinRows] of output_factor, right panels
  // [columns / lanes, rank, lanes] of input_factor, both padded.
  bool (*update)(const RankUpdate& params, const float* left, const float* right, std::int64_t first, std::int64_t last,
                 bool write);
};

// The one for this update on the path in use; update is null where there is none.
ThinRows thin_rows(const RankUpdate& params);

}  // namespace easyedit_fast
