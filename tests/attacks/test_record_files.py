"""Hostile and damaged files: each is refused with its error, or read as the table says."""

import os
import re
import time
from pathlib import Path

import pytest

from easyedit_fast.data import read_requests
from easyedit_fast.errors import DataFileError, MissingFileError, RequestError

FILES = Path(__file__).parent / "records"

REFUSED = [
    ("array_lines.jsonl", RequestError, r"^record 1: is a list; a record must be an object"),
    ("bare_text.json", DataFileError, r"neither a JSON array of records nor JSON lines"),
    ("blank.json", DataFileError, r"blank\.json: is empty"),
    ("blank_subject.json", RequestError, r"^record 0, field 'subject': is empty"),
    ("csv.json", DataFileError, r"neither a JSON array of records nor JSON lines"),
    ("deep_array.json", RequestError, r"^record 0: is a list"),
    ("deep_array_unclosed.json", DataFileError, r"line 1, column 5000, byte 5000: EOF"),
    ("deep_locality.json", RequestError, r"^record 0, field 'locality\.k\.prompt': .*holds a list"),
    (
        "deep_text_field.json",
        RequestError,
        r"^record 0, field 'prompt': must be a text, not an obj",
    ),
    ("duplicate_key.json", RequestError, r"^record 0: .*the key 'subject' is there twice"),
    ("duplicate_key_escaped.json", RequestError, r"^record 0: .*the key 'subject' is there twice"),
    (
        "duplicate_locality_key.json",
        RequestError,
        r"^record 0, field 'locality': .*'k' is there tw",
    ),
    ("empty.json", DataFileError, r"empty\.json: is empty"),
    ("encoded_surrogate.json", DataFileError, r"not UTF-8 text \(line 1, byte 17\)"),
    ("gzip.json", DataFileError, r"not UTF-8 text \(line 1, byte 1\)"),
    ("huge_number.json", RequestError, r"^record 0, field 'subject': must be a text, not a number"),
    ("invalid_utf8.jsonl", DataFileError, r"not UTF-8 text \(line 2, byte 82\)"),
    (
        "knowedit_deep_answer.json",
        RequestError,
        r"^record 0, field 'locality\.Forgetfulness\[1\]\.ground_truth': holds a list; give a text",
    ),
    (
        "knowedit_mixed_sections.json",
        RequestError,
        r"^record 0, field 'portability\.Reasoning': must be a list of objects that hold",
    ),
    (
        "knowedit_subject_elsewhere.json",
        RequestError,
        r"^record 1, field 'concept': subject 'ann orr' is not in the text 'Ann Orr lives in'",
    ),
    ("lone_surrogate.json", RequestError, r"^record 0, field 'target_new': is no valid text"),
    ("lone_surrogate_key.json", RequestError, r"^record 0: .*surrogate|^record 0: .*hex escape"),
    ("many_place_holders.json", RequestError, r"^record 0, field 'prompt': has 2000 '\{\}'"),
    ("nan.json", DataFileError, r"not valid JSON at line 1, column 79, byte 79: expected value"),
    ("only_bom.json", DataFileError, r"only_bom\.json: is empty"),
    ("overlong_utf8.json", DataFileError, r"not UTF-8 text \(line 1, byte 17\)"),
    ("python_literal.jsonl", RequestError, r"^record 0: is not valid JSON at line 1, column 2"),
    ("raw_control_character.json", DataFileError, r"control character .* found while parsing"),
    ("records_of_other_kinds.json", RequestError, r"^record 0: is null"),
    ("trailing_comma.json", DataFileError, r"trailing comma"),
    ("trailing_garbage.json", DataFileError, r"trailing characters"),
    (
        "truncated.json",
        DataFileError,
        r"line 2, column 22, byte 91: EOF while parsing a string; it ",
    ),
    (
        "truncated.jsonl",
        RequestError,
        r"^record 1: is not valid JSON at line 2, column 40, byte 107",
    ),
    (
        "truncated_between_records.json",
        DataFileError,
        r"line 2, column 67, byte 136: EOF while pars",
    ),
    ("utf16.json", DataFileError, r"not UTF-8 text \(line 1, byte 0\)"),
]

ACCEPTED = [
    "bom.json",
    "deep_unread_field.json",
    "huge_unread_number.json",
    "knowedit_aliases.json",
    "knowedit_passage.json",
    "nul_character.json",
]


@pytest.mark.parametrize(("name", "error", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_refused_with_one_line(name, error, message):
    with pytest.raises(error, match=message) as caught:
        read_requests(FILES / name)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name):
    (request,) = read_requests(FILES / name)
    assert request.prompt.endswith("lives in")
    assert request.target_new == "Rome"


def test_every_file_is_in_a_table():
    assert sorted([*ACCEPTED, *(row[0] for row in REFUSED)]) == sorted(
        path.name for path in FILES.iterdir()
    )


@pytest.mark.parametrize(
    "name", [name for name, error, _ in REFUSED if error is RequestError], ids=str
)
def test_bad_records_can_be_skipped(name):
    requests = read_requests(FILES / name, on_error="skip")
    assert requests.skipped
    assert all(isinstance(error, RequestError) for error in requests.skipped)
    assert all(request.subject == "Ann" for request in requests)


def test_a_record_beyond_the_bound(tmp_path):
    path = tmp_path / "long.json"
    path.write_text('[{"prompt": "' + "x" * (1 << 24) + '"}]')
    with pytest.raises(RequestError, match=r"^record 0: is \d+ bytes long; 16777216 are read"):
        read_requests(path)


def test_many_keys_take_no_quadratic_time(tmp_path):
    path = tmp_path / "keys.json"
    keys = ", ".join(f'"k{number}": 0' for number in range(200_000))
    path.write_text("[{" + keys + "}]")
    begin = time.perf_counter()
    with pytest.raises(RequestError, match="'prompt': is missing"):
        read_requests(path)
    assert time.perf_counter() - begin < 5


def test_a_subject_in_many_places_takes_no_cubic_time(tmp_path):
    path = tmp_path / "glued.json"
    path.write_text('[{"prompt": "' + "a" * 20_000 + '", "subject": "aa", "target_new": "x"}]')
    begin = time.perf_counter()
    (request,) = read_requests(path)
    assert request.subject_start == 19_998
    assert time.perf_counter() - begin < 5


def test_what_is_no_file(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe):
        with pytest.raises(DataFileError, match=re.escape(str(path)) + ": is no regular file"):
            read_requests(path)
    for path in (tmp_path / "no.json", FILES / "bom.json" / "no.json"):
        with pytest.raises(MissingFileError, match="there is no such file"):
            read_requests(path)
