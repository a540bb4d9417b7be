// Memory of the emulated device, with pages around every buffer that fault when touched.
#pragma once

#include <csetjmp>
#include <cstddef>

namespace easyedit_fast::emulator {

// While one lives, a fault next to a buffer jumps to the place of setjmp; any other fault is passed on
// to the handler that was there before.
class FaultTrap {
 public:
  explicit FaultTrap(sigjmp_buf& landing);
  ~FaultTrap();
  FaultTrap(const FaultTrap&) = delete;
  FaultTrap& operator=(const FaultTrap&) = delete;
};

}  // namespace easyedit_fast::emulator
