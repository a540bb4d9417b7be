"""Edit requests: one fact to edit, and the prompts that tell how well the edit went."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from easyedit_fast.errors import RequestError

_PLACE_HOLDER = "{}"


@dataclasses.dataclass(frozen=True, slots=True)
class Probe:
    """A prompt beside the edit, and the answer expected to it.

    Attributes:
        prompt: Text that the model continues, without trailing white space.
        ground_truth: Expected continuation, without leading space; None where only a change
            against the unedited model can be seen.
    """

    prompt: str
    ground_truth: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", self.prompt.rstrip())


@dataclasses.dataclass(frozen=True, slots=True)
class EditRequest:
    """One fact to edit.

    ``prompt`` holds the subject literally, or exactly one ``{}``, which the subject fills; a
    subject with ``{}`` in it fills that only where it does not stand in the prompt. Where the
    subject occurs more than once, the last occurrence that stands as a word of its own is the one
    edited (the last occurrence at all where none does).

    White space at the end of the prompts is dropped, for one space goes before every answer.

    ``dataclasses.replace`` settles the fields anew, from the filled prompt: an occurrence that
    ``{}`` had chosen may give way to the last one. ``EditRequest.from_dict({**request.to_dict(),
    "target_new": …})`` keeps it.

    Attributes:
        prompt: The prompt, with the subject filled in.
        subject: What the fact is about; a part of ``prompt``.
        target_new: The answer that the edited model shall give, without leading space.
        ground_truth: The answer before the edit, where known.
        rephrase_prompt: Other wordings of the prompt, which shall give the same answer.
        locality: Per key (e.g. ``neighborhood``) the prompts whose answer shall not change.
        portability: Per key (e.g. ``one_hop``) the prompts whose answer follows from the edit.
        subject_start: Character offset of the edited occurrence of the subject in ``prompt``.

    Raises:
        RequestError: A field is empty or of a wrong type, or the subject is not in the prompt.
    """

    prompt: str
    subject: str
    target_new: str
    ground_truth: str | None = None
    rephrase_prompt: tuple[str, ...] = ()
    locality: Mapping[str, tuple[Probe, ...]] = dataclasses.field(default_factory=dict)
    portability: Mapping[str, tuple[Probe, ...]] = dataclasses.field(default_factory=dict)
    subject_start: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        for name in ("prompt", "subject", "target_new"):
            _require_text(getattr(self, name), name)
        if self.ground_truth is not None:
            if not isinstance(self.ground_truth, str):
                raise RequestError("must be a text or None", field="ground_truth")
            require_characters(self.ground_truth, "ground_truth")
        prompt, start = fill_prompt(self.prompt, self.subject)
        settle = object.__setattr__
        settle(self, "prompt", prompt.rstrip())
        settle(self, "subject_start", start)
        # Where the prompt ends with the subject, so does the white space that was dropped.
        settle(self, "subject", self.prompt[start : start + len(self.subject)])
        settle(self, "target_new", self.target_new.strip())
        settle(self, "rephrase_prompt", _texts(self.rephrase_prompt, "rephrase_prompt"))
        settle(self, "locality", _probes(self.locality, "locality"))
        settle(self, "portability", _probes(self.portability, "portability"))

    def __hash__(self) -> int:
        # Of the texts alone: equal requests have equal ones, and mappings have no hash.
        return hash((self.prompt, self.subject_start, self.target_new))

    @property
    def subject_span(self) -> tuple[int, int]:
        """Character offsets [start, end) of the edited occurrence of the subject."""
        return self.subject_start, self.subject_start + len(self.subject)

    def to_dict(self) -> dict[str, Any]:
        """The request as plain JSON values, in the form that `from_dict` and the loader read.

        The prompt holds ``{}`` in place of the subject where it could be misread: where another
        occurrence would be taken for the edited one, or where ``{}`` is part of it.
        """
        record: dict[str, Any] = {
            "prompt": self._unmistakable_prompt(),
            "subject": self.subject,
            "target_new": self.target_new,
            "ground_truth": self.ground_truth,
            "rephrase_prompt": list(self.rephrase_prompt),
        }
        for section in ("locality", "portability"):
            record[section] = {
                key: {
                    "prompt": [probe.prompt for probe in probes],
                    "ground_truth": [probe.ground_truth for probe in probes],
                }
                for key, probes in getattr(self, section).items()
            }
        return record

    def _unmistakable_prompt(self) -> str:
        start, end = self.subject_span
        is_last = _last_occurrence(self.prompt, self.subject) == start
        template = f"{self.prompt[:start]}{_PLACE_HOLDER}{self.prompt[end:]}"
        is_plain = _PLACE_HOLDER not in self.prompt and is_last
        return self.prompt if is_plain or not _is_filled(template, self.subject) else template

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> EditRequest:
        """Builds a request from `to_dict`'s form or from EasyEdit's request dict.

        Keys that are not fields of a request (``case_id`` and the like) are passed over.

        Raises:
            RequestError: A field is missing or cannot be used.
        """
        for name in ("prompt", "subject", "target_new"):
            if record.get(name) is None:
                raise RequestError("is missing; add it to the request", field=name)
        names = [field.name for field in dataclasses.fields(cls) if field.init]
        given = {name: record[name] for name in names if record.get(name) is not None}
        return cls(**given)


def fill_prompt(prompt: str, subject: str) -> tuple[str, int]:
    """Fills ``{}`` with the subject, or finds the subject in the prompt.

    A subject that holds ``{}`` itself and stands in the prompt has filled it.

    Returns:
        The prompt with the subject in it, and the character offset of the edited occurrence.

    Raises:
        RequestError: There is more than one ``{}``, or neither it nor the subject.
    """
    if _is_filled(prompt, subject):
        start = prompt.index(_PLACE_HOLDER)
        return prompt.replace(_PLACE_HOLDER, subject), start
    start = _last_occurrence(prompt, subject)
    if start >= 0:
        return prompt, start
    fills = prompt.count(_PLACE_HOLDER)
    if fills > 1:
        raise RequestError(f"has {fills} '{{}}'; the subject can fill only one", field="prompt")
    raise RequestError(
        f"subject {subject!r} is not in the prompt {prompt!r}; "
        "write the subject there literally, or '{}' in its place",
        field="subject",
    )


def _is_filled(prompt: str, subject: str) -> bool:
    """Whether the subject goes in the place of ``{}``."""
    is_literal = _PLACE_HOLDER in subject and subject in prompt
    return prompt.count(_PLACE_HOLDER) == 1 and not is_literal


def contradictions(
    requests: Sequence[EditRequest],
) -> Iterator[tuple[int, RequestError]]:
    """What cannot hold in one model: requests with the same prompt and different targets.

    Runs of white space in the prompts count as one space.

    Args:
        requests: The requests.

    Yields:
        The place of each request that contradicts one before it, and an error that tells both
        targets.
    """
    seen: dict[str, int] = {}
    for place, request in enumerate(requests):
        other = seen.setdefault(" ".join(request.prompt.split()), place)
        if requests[other].target_new != request.target_new:
            error = RequestError(
                f"an earlier request has the same prompt {request.prompt!r} and another target "
                f"({requests[other].target_new!r}; here {request.target_new!r}); drop one of them "
                "(on_error='skip', --skip-bad), or edit them isolated (isolated=True, --isolated) "
                "or one after another (sequential=1, --sequential 1)",
                field="target_new",
            )
            yield place, error


def _last_occurrence(text: str, part: str) -> int:
    """Offset of the last occurrence of `part` as a word of its own, else of the last; or -1."""
    start = last = text.rfind(part)
    while start >= 0:
        end = start + len(part)
        glued_left = start > 0 and text[start - 1].isalnum() and part[0].isalnum()
        glued_right = end < len(text) and text[end].isalnum() and part[-1].isalnum()
        if not (glued_left or glued_right):
            return start
        start = text.rfind(part, 0, end - 1)
    return last


def _require_text(value: object, field: str) -> None:
    if not isinstance(value, str):
        raise RequestError(f"must be a text, not {type(value).__name__}", field=field)
    require_characters(value, field)
    if not value.strip():
        raise RequestError("is empty; give a text", field=field)


def require_characters(value: str, field: str) -> None:
    """Refuses a text that no file and no tokenizer takes.

    Raises:
        RequestError: It holds half of a surrogate pair.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RequestError(
            "is no valid text: it holds half of a surrogate pair; give whole characters",
            field=field,
        ) from None


def _texts(value: object, field: str) -> tuple[str, ...]:
    texts = [text.rstrip() for text in _entries(value, field) if text is not None]
    for text in texts:
        require_characters(text, field)
    return tuple(text for text in texts if text)


def _entries(value: object, field: str) -> tuple[str | None, ...]:
    """A text, or a list of texts in which None marks a gap, as EasyEdit's files have it."""
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Sequence):
        entries = tuple(value)
        if all(entry is None or isinstance(entry, str) for entry in entries):
            return entries
    raise RequestError("must be a text or a list of texts", field=field)


def _probes(value: object, field: str) -> dict[str, tuple[Probe, ...]]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RequestError(
            "must map a name to {'prompt': …, 'ground_truth': …}, as EasyEdit writes it",
            field=field,
        )
    found: dict[str, tuple[Probe, ...]] = {}
    for key, entry in value.items():
        require_characters(str(key), field)
        found[str(key)] = tuple(_section(entry, f"{field}.{key}"))
        for probe in found[str(key)]:
            require_characters(probe.prompt, f"{field}.{key}.prompt")
            require_characters(probe.ground_truth or "", f"{field}.{key}.ground_truth")
    return found


def _section(entry: object, field: str) -> Iterable[Probe]:
    if isinstance(entry, Probe):
        entry = (entry,)
    if isinstance(entry, list | tuple) and all(isinstance(probe, Probe) for probe in entry):
        return entry
    if not isinstance(entry, Mapping) or "prompt" not in entry:
        raise RequestError("must hold 'prompt' and may hold 'ground_truth'", field=field)
    prompts = _entries(entry["prompt"], f"{field}.prompt")
    answers: Sequence[str | None] = [None] * len(prompts)
    if entry.get("ground_truth") is not None:
        answers = _entries(entry["ground_truth"], f"{field}.ground_truth")
    if len(answers) != len(prompts):
        raise RequestError("'prompt' and 'ground_truth' must be of one length", field=field)
    return [
        Probe(prompt, answer or None)
        for prompt, answer in zip(prompts, answers, strict=True)
        if prompt is not None and prompt.strip()
    ]


Requests: TypeAlias = EditRequest | Mapping[str, Any] | Sequence[EditRequest | Mapping[str, Any]]
"""One request or several, as `EditRequest` or as mappings of its fields."""


def request_list(requests: Requests) -> list[EditRequest]:
    """The requests as a list; mappings become `EditRequest`.

    Raises:
        RequestError: There is none, or one of them cannot be used.
    """
    if isinstance(requests, str | os.PathLike):
        raise RequestError(
            f"{os.fspath(requests)!r} is a text; pass requests, e.g. read_requests(path)"
        )
    if isinstance(requests, EditRequest | Mapping):
        requests = [requests]
    if not isinstance(requests, Iterable):
        raise RequestError(f"requests are a list or one request, not {type(requests).__name__}")
    given: Iterable[object] = requests  # who does not check types may pass anything
    made: list[EditRequest] = []
    for place, request in enumerate(given):
        if isinstance(request, EditRequest):
            made.append(request)
            continue
        if not isinstance(request, Mapping):
            kind = type(request).__name__
            raise RequestError(f"is an EditRequest or a dict, not {kind}", record=place)
        try:
            made.append(EditRequest.from_dict(request))
        except RequestError as error:
            raise error.at(place) from None
    if not made:
        raise RequestError("there is no request; give at least one")
    return made
