"""Presets: what ROME trades between its quality and its time, under one name each.

A preset holds keys of `ROMEHyperParams`. The values of ``default`` and ``fast`` were chosen on
validation records of CounterFact; docs/rome.md has what each of them scores and costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from easyedit_fast.errors import HparamsError

DEFAULT = "default"

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # What EasyEdit computes.
        "exact": {
            "v_optimizer": "adam",
            "v_stop_probability": None,
            "consistent_keys": False,
            "context_templates": None,
            "context_template_length_params": [[5, 10], [10, 10]],
        },
        DEFAULT: {
            "v_optimizer": "normalised",
            "v_stop_probability": 0.95,
            "consistent_keys": True,
            "context_templates": None,
            "context_template_length_params": [[5, 1], [10, 1]],
        },
        "fast": {
            "v_optimizer": "normalised",
            "v_stop_probability": 0.95,
            "consistent_keys": True,
            "context_templates": ["{}"],
        },
    }
)


def preset_values(name: str) -> dict[str, Any]:
    """The keys of a preset.

    Raises:
        HparamsError: There is no such preset.
    """
    values = PRESETS.get(name.lower())
    if values is None:
        raise HparamsError(f"preset {name!r} is unknown; use one of {', '.join(PRESETS)}")
    return dict(values)
