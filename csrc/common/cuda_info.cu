#include "common/cuda_info.h"

#include <initializer_list>

namespace easyedit_fast {

std::vector<std::string> cuda_targets() {
  std::vector<std::string> targets;
  for (const int architecture : {__CUDA_ARCH_LIST__}) {
    targets.push_back(std::to_string(architecture / 100) + "." + std::to_string(architecture % 100 / 10));
  }
  return targets;
}

}  // namespace easyedit_fast
