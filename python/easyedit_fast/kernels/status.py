"""What the kernels would run on here, for ``easyedit-fast doctor``."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from easyedit_fast.errors import NativeModuleError
from easyedit_fast.kernels import native


@dataclass(frozen=True)
class DeviceStatus:
    """One device that torch sees.

    Attributes:
        device: Name for torch, such as ``cpu`` or ``cuda:0``.
        name: Name of the card or of the instruction set in use.
        capability: Compute capability of a card, such as ``9.0``; None for the CPU.
        path: ``native`` or ``reference``.
        reason: Why the path is ``reference``; None where it is ``native``.
    """

    device: str
    name: str
    capability: str | None
    path: str
    reason: str | None


@dataclass(frozen=True)
class KernelStatus:
    """State of the native kernels in this process.

    Attributes:
        choice: Value of ``EASYEDIT_FAST_KERNELS``: ``auto``, ``native`` or ``reference``.
        loaded: Whether ``easyedit_fast._kernels`` could be loaded and has the right version.
        reason: Why it was not loaded; None where it was.
        version: Version of the native module; None where it was not loaded.
        package_version: Version of the installed package; None in a source tree.
        cpu_features: Instruction sets of this CPU that the kernels know of.
        cpu_path: Instruction set that the CPU kernels use; None where not loaded.
        cuda_built: Whether the native module has its CUDA part.
        cuda_targets: Compute capabilities that the CUDA part was compiled for, such as ``8.0``.
        devices: The CPU first, then every CUDA device that torch sees.
    """

    choice: str
    loaded: bool
    reason: str | None
    version: str | None
    package_version: str | None
    cpu_features: tuple[str, ...]
    cpu_path: str | None
    cuda_built: bool
    cuda_targets: tuple[str, ...]
    devices: tuple[DeviceStatus, ...]


def kernel_status() -> KernelStatus:
    """Say which kernels are there and which path each device takes.

    Returns:
        The state; nothing is raised where the native module is missing.

    Raises:
        ValueError: ``EASYEDIT_FAST_KERNELS`` has an unknown value.
    """
    module = native.load()
    choice = native.choice()
    package_version = native.package_version()
    if isinstance(module, NativeModuleError):
        return KernelStatus(
            choice=choice,
            loaded=False,
            reason=str(module),
            version=None,
            package_version=package_version,
            cpu_features=(),
            cpu_path=None,
            cuda_built=False,
            cuda_targets=(),
            devices=_devices(choice, "plain torch"),
        )
    return KernelStatus(
        choice=choice,
        loaded=True,
        reason=None,
        version=module.VERSION,
        package_version=package_version,
        cpu_features=tuple(module.cpu_features()),
        cpu_path=module.cpu_path(),
        cuda_built=module.CUDA_BUILT,
        cuda_targets=tuple(module.CUDA_TARGETS),
        devices=_devices(choice, module.cpu_path()),
    )


def _devices(choice: str, cpu_name: str) -> tuple[DeviceStatus, ...]:
    cards = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return (
        _device(choice, torch.device("cpu"), cpu_name, None),
        *(_card(choice, torch.device("cuda", index)) for index in cards),
    )


def _card(choice: str, device: torch.device) -> DeviceStatus:
    major, minor = torch.cuda.get_device_capability(device)
    return _device(choice, device, torch.cuda.get_device_name(device), f"{major}.{minor}")


def _device(choice: str, device: torch.device, name: str, capability: str | None) -> DeviceStatus:
    if choice == "reference":
        reason: str | None = f"{native.VARIABLE}=reference"
    else:
        reason = native.unusable(device)
    path = "native" if reason is None else "reference"
    return DeviceStatus(str(device), name, capability, path, reason)
