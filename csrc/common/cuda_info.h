// What the CUDA part was compiled for.
#pragma once

#include <string>
#include <vector>

namespace easyedit_fast {

// Compute capabilities, such as "8.0"; empty where the build has no CUDA part.
#if EASYEDIT_FAST_CUDA
std::vector<std::string> cuda_targets();
#else
inline std::vector<std::string> cuda_targets() { return {}; }
#endif

}  // namespace easyedit_fast
