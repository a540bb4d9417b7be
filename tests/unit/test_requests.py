"""Edit requests: the prompt's subject, the settled fields, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from easyedit_fast import EditRequest, Probe
from easyedit_fast.errors import RequestError
from easyedit_fast.requests import contradictions, request_list


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
        ("In Go, interface{} is", "interface{}", "In Go, interface{} is", 7),
        ("In Go, {} is", "interface{}", "In Go, interface{} is", 7),
        ("{} is", "{}", "{} is", 0),
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
        ({"prompt": "{} is \ud800"}, "field 'prompt': is no valid text: it holds half of a"),
        ({"subject": "\udfff"}, "field 'subject': is no valid text"),
        ({"target_new": "\ud800"}, "field 'target_new': is no valid text"),
        ({"ground_truth": "\ud800"}, "field 'ground_truth': is no valid text"),
        ({"rephrase_prompt": ["a", "\ud800"]}, "field 'rephrase_prompt': is no valid text"),
        ({"locality": {"near": {"prompt": "\ud800"}}}, "field 'locality.near.prompt': is no valid"),
        (
            {"locality": {"near": [Probe("a", "\ud800")]}},
            "field 'locality.near.ground_truth': is no valid text",
        ),
        ({"portability": {"\ud800": {"prompt": "a"}}}, "field 'portability': is no valid text"),
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
    assert request.prompt == f"{before}{subject}{after}".rstrip()
    again = EditRequest.from_dict(request.to_dict())
    assert (again.prompt, again.target_new) == (request.prompt, request.target_new)
    assert again.subject == request.subject == request.prompt[slice(*request.subject_span)]
    assert subject.startswith(request.subject)


braced = st.text("{} ab\u00e9.", max_size=10)


@given(before=braced, after=braced, subject=braced, is_template=st.booleans())
def test_braces_survive(before: str, after: str, subject: str, is_template: bool) -> None:
    try:
        request = make(prompt=f"{before}{'{}' if is_template else subject}{after}", subject=subject)
    except RequestError:
        return
    assert EditRequest.from_dict(request.to_dict()) == request


def test_no_prompt_ends_in_white_space() -> None:
    request = make(
        prompt="{} is in \n",
        rephrase_prompt=["Oslo lies in "],
        locality={"near": {"prompt": "Bergen is in\t", "ground_truth": "Norway"}},
    )
    assert request.prompt == "Oslo is in"
    assert request.rephrase_prompt == ("Oslo lies in",)
    assert request.locality == {"near": (Probe("Bergen is in", "Norway"),)}
    at_the_end = make(prompt="I like {}", subject="Oslo ")
    assert (at_the_end.prompt, at_the_end.subject) == ("I like Oslo", "Oslo")
    assert at_the_end.subject_span == (7, 11)


def test_gaps_in_lists_are_dropped_with_their_answers() -> None:
    request = make(
        rephrase_prompt=["a", None, " "],
        portability={"hop": {"prompt": ["a", "", None], "ground_truth": ["x", "y", "z"]}},
    )
    assert request.rephrase_prompt == ("a",)
    assert request.portability == {"hop": (Probe("a", "x"),)}


def test_equal_requests_have_one_hash() -> None:
    near = {"near": {"prompt": "Bergen is in", "ground_truth": "Norway"}}
    assert len({make(locality=near), make(locality=near), make(target_new="Peru")}) == 2


def test_from_dict_keeps_the_edited_occurrence_and_replace_does_not() -> None:
    first = make(prompt="{} and Oslo are")
    kept = EditRequest.from_dict({**first.to_dict(), "target_new": "Peru"})
    assert (kept.subject_start, kept.target_new) == (0, "Peru")
    assert dataclasses.replace(first, target_new="Peru").subject_start == 9


def test_contradictions_tell_both_targets() -> None:
    requests = [make(), make(prompt="{} has"), make(target_new="Peru")]
    ((place, error),) = contradictions(requests)
    assert place == 2
    assert f"and another target ({requests[0].target_new!r}; here 'Peru')" in str(error)
    assert not list(contradictions(requests[:2]))
    assert not list(contradictions([make(), make()]))
    assert len(list(contradictions([make(), make(prompt="{}  is\nin", target_new="Peru")]))) == 1


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        (None, "are a list or one request, not NoneType"),
        ([make(), 1], "record 1: is an EditRequest or a dict, not int"),
    ],
)
def test_what_is_no_request_is_refused(requests: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        request_list(requests)  # type: ignore[arg-type]
