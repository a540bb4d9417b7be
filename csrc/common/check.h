// Checks of arguments that come from outside: the message names what was expected.
#pragma once

#include <stdexcept>
#include <string>

namespace easyedit_fast {

inline void require(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);
}

}  // namespace easyedit_fast
