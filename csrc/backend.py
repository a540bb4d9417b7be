"""The build backend: maturin's, plus the CUDA compiler from the package index.

maturin cannot say that a requirement depends on the platform's libc or on the user's choice, so
the two hooks that name build requirements are extended here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import maturin
from build import BuildError, cuda_requirements
from maturin import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def get_requires_for_build_wheel(config_settings: Mapping[str, Any] | None = None) -> list[str]:
    """What a wheel needs: maturin's requirements and the CUDA compiler."""
    try:
        return [*maturin.get_requires_for_build_wheel(config_settings), *cuda_requirements()]
    except BuildError as error:
        sys.exit(f"error: {error}")


get_requires_for_build_editable = get_requires_for_build_wheel
