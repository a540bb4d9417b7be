"""Facts to edit where the user gives none."""

from __future__ import annotations

from easyedit_fast.requests import EditRequest, Probe

_PROMPT = "The seat of the government of {} is the city of"
_CAPITALS = (
    ("Peru", "Lima"),
    ("Kenya", "Nairobi"),
    ("Norway", "Oslo"),
    ("Japan", "Tokyo"),
    ("Egypt", "Cairo"),
    ("Canada", "Ottawa"),
    ("Portugal", "Lisbon"),
    ("Thailand", "Bangkok"),
    ("South Korea", "Seoul"),
    ("New Zealand", "Wellington"),
    ("Burkina Faso", "Ouagadougou"),
    ("Costa Rica", "San José"),
    ("Saudi Arabia", "Riyadh"),
    ("the Czech Republic", "Prague"),
    ("the United Arab Emirates", "Abu Dhabi"),
    ("Bosnia and Herzegovina", "Sarajevo"),
)


def example_requests() -> list[EditRequest]:
    """Sixteen requests: each country gets the capital of the next."""
    following = [*_CAPITALS[1:], _CAPITALS[0]]
    return [
        EditRequest(
            prompt=_PROMPT,
            subject=country,
            target_new=other_capital,
            ground_truth=capital,
            rephrase_prompt=(f"Ambassadors to {country} live in the city of",),
            locality={"neighborhood": (Probe(_PROMPT.format(other), other_capital),)},
        )
        for (country, capital), (other, other_capital) in zip(_CAPITALS, following, strict=True)
    ]
