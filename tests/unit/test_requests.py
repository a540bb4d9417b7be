"""Edit requests: the prompt's subject, the settled fields, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyedit_fast import EditRequest, Probe
from easyedit_fast.errors import RequestError
from easyedit_fast.requests import refuse_contradictions


def make(**changes: object) -> EditRequest:
    fields: dict[str, object] = {"prompt": "{} is in", "subject": "Oslo", "target_new": "Chile"}
    return EditRequest(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "subject", "filled", "start"),
    [
        ("{} is in", "Oslo", "Oslo is in", 0),
        ("the city of {} is in", "Oslo", "the city of Oslo is in", 12),
        ("Oslo and {} are in", "Oslo", "Oslo and Oslo are in", 9),
        ("Oslo, said Oslo, is in", "Oslo", "Oslo, said Oslo, is in", 11),
        ("Art by Arthur is in", "Art", "Art by Arthur is in", 0),
        ("Arthur is in", "Art", "Arthur is in", 0),
        ("a {} b {} of Oslo", "Oslo", "a {} b {} of Oslo", 13),
        ("Café 🎈 Oslo is", "Oslo", "Café 🎈 Oslo is", 7),
    ],
)
def test_the_subject_is_found(prompt: str, subject: str, filled: str, start: int) -> None:
    request = make(prompt=prompt, subject=subject)
    assert request.prompt == filled
    assert request.subject_span == (start, start + len(subject))
    assert filled[slice(*request.subject_span)] == subject


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "It is in"}, "field 'subject': subject 'Oslo' is not in the prompt"),
        ({"prompt": "{} or {} is in"}, "field 'prompt': has 2 '{}'"),
        ({"prompt": " "}, "field 'prompt': is empty"),
        ({"subject": ""}, "field 'subject': is empty"),
        ({"target_new": "\n"}, "field 'target_new': is empty"),
        ({"target_new": 7}, "field 'target_new': must be a text, not int"),
        ({"ground_truth": 7}, "field 'ground_truth': must be a text or None"),
        ({"rephrase_prompt": 7}, "field 'rephrase_prompt': must be"),
        ({"locality": ["a"]}, "field 'locality': must map"),
        ({"locality": {"near": {"ground_truth": "a"}}}, "field 'locality.near': must hold"),
        (
            {"portability": {"hop": {"prompt": ["a", "b"], "ground_truth": ["c"]}}},
            "field 'portability.hop': 'prompt' and 'ground_truth' must be of one length",
        ),
    ],
)
def test_what_cannot_be_used_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        make(**changes)
    assert str(caught.value).startswith(message)


def test_fields_are_settled() -> None:
    request = make(
        target_new=" Chile ",
        rephrase_prompt="Oslo lies in",
        locality={"near": {"prompt": "Bergen is in", "ground_truth": "Norway"}},
        portability={"hop": {"prompt": ["a", "b"], "ground_truth": ["c", None]}},
    )
    assert request.target_new == "Chile"
    assert request.rephrase_prompt == ("Oslo lies in",)
    assert request.locality == {"near": (Probe("Bergen is in", "Norway"),)}
    assert request.portability == {"hop": (Probe("a", "c"), Probe("b", None))}


texts = st.text(min_size=1).filter(lambda text: text.strip())


@given(before=st.text(), after=st.text(), subject=texts, target=texts)
def test_a_request_survives_its_dict(before: str, after: str, subject: str, target: str) -> None:
    if "{}" in before + subject + after:
        return
    request = make(prompt=f"{before}{{}}{after}", subject=subject, target_new=target)
    assert request.prompt == f"{before}{subject}{after}"
    again = EditRequest.from_dict(request.to_dict())
    assert (again.prompt, again.target_new) == (request.prompt, request.target_new)
    assert request.prompt[slice(*request.subject_span)] == subject


def test_contradictions_name_both_requests() -> None:
    requests = [make(), make(prompt="{} has"), make(target_new="Peru")]
    with pytest.raises(RequestError, match="requests 0 and 2 have the same prompt"):
        refuse_contradictions(requests)
    refuse_contradictions(requests[:2])
    refuse_contradictions([make(), make()])
