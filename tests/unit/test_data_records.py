"""`read_requests`: forms, limits, and agreement with `EditRequest`."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easyedit_fast.data import RequestList, native, read_requests
from easyedit_fast.errors import RequestError
from easyedit_fast.requests import EditRequest, Probe

DATA = Path(os.environ.get("EASYEDIT_FAST_DATA", "")) / "data"
needs_data = pytest.mark.skipif(
    "EASYEDIT_FAST_DATA" not in os.environ or not DATA.is_dir(),
    reason="EASYEDIT_FAST_DATA names no folder with the data sets",
)

# Unassigned characters and lone surrogates are left out: the former depend on Python's version of
# Unicode, the latter cannot be written as UTF-8.
letters = st.characters(exclude_categories=["Cs", "Cn"])
texts = st.text(st.sampled_from("aB é語{} \u0301\u001c9Ⅷ_") | letters, max_size=8)
junk = st.sampled_from([7, 1.5, True, {"prompt": "x"}, [], ["a", 7], [None], "", " "])
text_lists = texts | st.lists(st.none() | texts, max_size=3)
answers = st.none() | texts | st.lists(st.none() | texts, max_size=3)
entries = st.fixed_dictionaries(
    {"prompt": text_lists | st.sampled_from([7, None])},
    optional={"ground_truth": answers | st.sampled_from([7, [7], {}])},
)
sections = st.dictionaries(texts, entries | st.sampled_from([{}, 7, None, []]), max_size=2)


@st.composite
def records(draw):
    """Records of which about a third can be used."""
    subject, pad = draw(texts), draw(texts)
    places = [subject, "{}", subject + pad + subject, "{}" + subject, "{}{}" + subject, ""]
    prompt = draw(texts) + draw(st.sampled_from(places)) + draw(texts)
    record = {"prompt": prompt, "subject": subject, "target_new": draw(texts)}
    optional = {
        "ground_truth": st.none() | texts | st.sampled_from([7, ["a"]]),
        "rephrase_prompt": st.none() | text_lists | st.sampled_from([7, [7]]),
        "locality": st.none() | sections | st.sampled_from([7, "x", []]),
        "portability": st.none() | sections,
    }
    for name, strategy in optional.items():
        if draw(st.booleans()):
            record[name] = draw(strategy)
    if draw(st.integers(0, 9)) == 0:
        record[draw(st.sampled_from(["prompt", "subject", "target_new"]))] = draw(
            st.sampled_from([7, True, ["a"], {}])
        )
    if draw(st.integers(0, 19)) == 0:
        del record[draw(st.sampled_from(sorted(record)))]
    return record


def by_python(record):
    try:
        return EditRequest.from_dict(record)
    except RequestError:
        return None


@settings(deadline=None, max_examples=150)
@given(st.lists(records(), max_size=5))
def test_both_sides_accept_refuse_and_settle_alike(tmp_path_factory, made):
    path = tmp_path_factory.mktemp("records") / "requests.json"
    path.write_text(json.dumps(made, ensure_ascii=False), encoding="utf-8")
    expected = [by_python(record) for record in made]
    read = native.read_records(path, format="requests", limit=None, offset=0, on_error="skip")
    assert [error.record for error in read.skipped] == [
        place for place, request in enumerate(expected) if request is None
    ]
    for record in read.records:
        request = expected[record.number]
        assert record.prompt == request.prompt
        assert record.subject == request.subject
        assert tuple(record.rephrase_prompt) == request.rephrase_prompt
        assert record.subject_start == request.subject_start
        assert record.target_new == request.target_new
        assert record.template == made[record.number]["prompt"]
    accepted = [request for request in expected if request is not None]
    assert list(read_requests(path, format="requests", on_error="skip")) == accepted


def test_the_property_test_sees_both_kinds():
    accepted = []

    @settings(deadline=None, max_examples=100, derandomize=True, database=None)
    @given(records())
    def count(record):
        accepted.append(by_python(record) is not None)

    count()
    assert 0.1 < sum(accepted) / len(accepted) < 0.9


def test_what_a_request_writes_is_read_back(tmp_path):
    request = EditRequest(
        prompt="The mother tongue of {} is",
        subject="Danielle Darrieux",
        target_new="English",
        ground_truth="French",
        rephrase_prompt=("Danielle Darrieux, a native",),
        locality={"neighborhood": (Probe("Léon Blum speaks", "French"), Probe("Rome is"))},
        portability={"one_hop": (Probe("Danielle Darrieux is from", "England"),)},
    )
    path = tmp_path / "requests.jsonl"
    path.write_text(f"{json.dumps(request.to_dict())}\n" * 3)
    requests = read_requests(path)
    assert requests == [request] * 3
    assert isinstance(requests, RequestList)
    assert requests.skipped == []


@pytest.mark.parametrize("prompt", ["In Go, {} is an alias", "In Go, interface{} is an alias"])
def test_a_subject_with_braces_is_read_back(tmp_path, prompt):
    request = EditRequest(prompt, "interface{}", "any")
    assert request.prompt == "In Go, interface{} is an alias"
    path = tmp_path / "requests.json"
    for written in (prompt, request.to_dict()["prompt"], request.prompt):
        path.write_text(json.dumps({**request.to_dict(), "prompt": written}))
        assert read_requests(path) == [request]
        read = native.read_records(path, format="requests", limit=1, offset=0, on_error="raise")
        assert read.records[0].prompt == request.prompt


def test_the_template_decides_which_occurrence_is_edited(tmp_path):
    path = tmp_path / "one.json"
    record = {"prompt": "{} and Ann", "subject": "Ann", "target_new": "x"}
    path.write_text(json.dumps(record))
    (request,) = read_requests(str(path))
    assert (request.prompt, request.subject_span) == ("Ann and Ann", (0, 3))


def test_gaps_and_trailing_space_are_dropped(tmp_path):
    path = tmp_path / "one.json"
    near = {"prompt": ["a ", "", None], "ground_truth": ["x", "y", "z"]}
    record = {"prompt": "I like {} ", "subject": "Ann ", "target_new": "x"}
    record |= {"rephrase_prompt": [None, "b "], "locality": {"near": near}}
    path.write_text(json.dumps(record))
    (request,) = read_requests(path)
    assert request == EditRequest.from_dict(record)
    assert (request.prompt, request.subject, request.rephrase_prompt) == (
        "I like Ann",
        "Ann",
        ("b",),
    )
    assert request.locality == {"near": (Probe("a", "x"),)}


def test_limit_and_offset_count_records_of_the_file(tmp_path):
    path = tmp_path / "many.json"
    subjects = ["A", "B", "", "D", "E"]
    made = [{"prompt": f"{s} is", "subject": s, "target_new": "x"} for s in subjects]
    path.write_text(json.dumps(made))
    requests = read_requests(path, offset=1, limit=3, on_error="skip")
    assert [request.subject for request in requests] == ["B", "D"]
    assert [(error.record, error.field) for error in requests.skipped] == [(2, "subject")]
    assert str(requests.skipped[0]).endswith("many.json)")
    assert [request.subject for request in read_requests(path, offset=3)] == ["D", "E"]
    assert read_requests(path, limit=0) == []
    with pytest.raises(RequestError, match=r"^record 2, field 'subject': is empty"):
        read_requests(path)


def test_wrong_arguments(tmp_path):
    path = tmp_path / "none.json"
    path.write_text("[]")
    assert read_requests(path) == []
    for arguments, message in [
        ({"format": "csv"}, "unknown format 'csv'; known are auto, requests"),
        ({"on_error": "ignore"}, "must be 'raise' or 'skip'"),
        ({"limit": -1}, "limit must not be negative"),
        ({"offset": -1}, "offset must not be negative"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_requests(path, **arguments)


def knowedit(**fields):
    return {"subject": "Lake Orrin", "prompt": "Lake Orrin lies in", "target_new": "Chad"} | fields


def read_json(folder, made, **options):
    path = folder / "made.json"
    path.write_text(json.dumps(made), encoding="utf-8")
    return read_requests(path, **options)


def test_knowedit_of_wiki(tmp_path):
    record = knowedit(
        ground_truth="Mali",
        rephrase=["The land of Lake Orrin is", ""],
        portability={
            "Logical_Generalization": [],
            "Reasoning": [{"prompt": "At Lake Orrin one pays in ", "ground_truth": "francs"}],
            "Subject_Aliasing": [{"prompt": "The Orrin lies in", "ground_truth": [["Chad", "TD"]]}],
        },
        locality={
            "Relation_Specificity": [
                {"prompt": "Lake Orrin is as deep as", "ground_truth": [["40 m"], ["131 ft"]]},
                {"prompt": "Lake Orrin feeds", "ground_truth": [["", None], ["the Tay"]]},
            ],
            "Forgetfulness": [{"prompt": "Lake Orrin borders on", "ground_truth": []}],
        },
    )
    expected = EditRequest(
        prompt="Lake Orrin lies in",
        subject="Lake Orrin",
        target_new="Chad",
        ground_truth="Mali",
        rephrase_prompt=("The land of Lake Orrin is",),
        portability={
            "Logical_Generalization": (),
            "Reasoning": (Probe("At Lake Orrin one pays in", "francs"),),
            "Subject_Aliasing": (Probe("The Orrin lies in", "Chad"),),
        },
        locality={
            "Relation_Specificity": (
                Probe("Lake Orrin is as deep as", "40 m"),
                Probe("Lake Orrin feeds", "the Tay"),
            ),
            "Forgetfulness": (Probe("Lake Orrin borders on", None),),
        },
    )
    assert read_json(tmp_path, [record]) == [expected]
    assert read_json(tmp_path, [record], format="knowedit") == [expected]
    with pytest.raises(RequestError, match=r"'locality\.Relation_Specificity': must hold 'prompt'"):
        read_json(tmp_path, [record], format="requests")


def test_knowedit_of_zsre(tmp_path):
    hops = [
        {"prompt": "Lake Orrin is on the continent", "ground_truth": "Africa"},
        {"prompt": " ", "ground_truth": ["Asia"]},
        {"prompt": None},
    ]
    near = [{"prompt": ["Lake Orrin holds", "It holds"], "ground_truth": [" ", "trout"]}]
    record = knowedit(
        ground_truth=["Mali", "Niger"],
        rephrase_prompt="The land of Lake Orrin is",
        cond="Mali >> Chad || Lake Orrin lies in",
        locality={"Relation_Specificity": near},
        portability={"Reasoning": hops},
    )
    (request,) = read_json(tmp_path, [record])
    assert request.ground_truth == "Mali"
    assert request.rephrase_prompt == ("The land of Lake Orrin is",)
    assert request.locality == {"Relation_Specificity": (Probe("Lake Orrin holds", "trout"),)}
    assert request.portability == {
        "Reasoning": (Probe("Lake Orrin is on the continent", "Africa"),)
    }


def test_knowedit_of_wikibio(tmp_path):
    text = "A page about mara quill. Mara Quill (born 1931) was a glass painter."
    near = [{"prompt": "Mara Quill was born in", "ground_truth": [["1931"]]}]
    record = {"text": text, "concept": "mara quill", "labels": "She taught in Leeds."}
    record |= {"locality": {"Relation_Specificity": near}}
    elsewhere = record | {"concept": "mara_quill"}
    requests = read_json(tmp_path, [record, elsewhere], on_error="skip")
    (request,) = requests
    assert (request.prompt, request.subject_span) == (text, (13, 23))
    assert request.target_new == "She taught in Leeds."
    assert request.locality == {"Relation_Specificity": (Probe("Mara Quill was born in", "1931"),)}
    (error,) = requests.skipped
    assert (error.record, error.field) == (1, "concept")
    assert "'mara_quill' is not in the text 'A page about mara quill." in error.reason


def test_empty_sections_leave_the_form_to_a_later_record(tmp_path):
    empty = knowedit(locality={"Forgetfulness": []}, portability={})
    lists = knowedit(locality={"Forgetfulness": [{"prompt": "It rains in", "ground_truth": "May"}]})
    own = knowedit(locality={"near": {"prompt": "It rains in", "ground_truth": "May"}})
    assert read_json(tmp_path, [empty, lists])[1].locality == {
        "Forgetfulness": (Probe("It rains in", "May"),)
    }
    assert read_json(tmp_path, [empty, own])[1].locality == {"near": (Probe("It rains in", "May"),)}
    for made in ([knowedit(), lists], [own, lists]):
        (error,) = read_json(tmp_path, made, on_error="skip").skipped
        assert (error.record, error.field) == (1, "locality.Forgetfulness")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"locality": {"Forgetfulness": [{"prompt": "a"}, {"prompt": "b", "ground_truth": 7}]}},
            r"'locality\.Forgetfulness\[1\]\.ground_truth': holds a number; give a text",
        ),
        (
            {"portability": {"Reasoning": [{"ground_truth": "a"}]}},
            r"'portability\.Reasoning\[0\]\.prompt': is missing; add it to the probe",
        ),
        (
            {"portability": {"Reasoning": {"prompt": "a"}}},
            r"'portability\.Reasoning': must be a list of objects that hold 'prompt', not an obj",
        ),
        (
            {"portability": {"Reasoning": ["a"]}},
            r"'portability\.Reasoning\[0\]': must be an object, not a text",
        ),
        ({"locality": []}, r"'locality': must be an object, not a list"),
        ({"ground_truth": [["a"], True]}, r"'ground_truth': holds true or false; give a text"),
        ({"rephrase": 7}, r"'rephrase': must be a text or a list of texts, not a number"),
        ({"target_new": ["a"]}, r"'target_new': must be a text, not a list"),
        ({"subject": "Loch Orrin"}, r"'subject': .* is not in the prompt 'Lake Orrin lies in'"),
    ],
)
def test_bad_values_of_knowedit(tmp_path, fields, message):
    made = [knowedit(), knowedit(**fields)]
    with pytest.raises(RequestError, match=rf"^record 1, field {message}"):
        read_json(tmp_path, made, format="knowedit")
    assert len(read_json(tmp_path, made, format="knowedit", on_error="skip")) == 1


@needs_data
@pytest.mark.parametrize("name", ["train", "val", "edit"])
def test_counterfact_files(name):
    path = DATA / "counterfact" / f"counterfact-{name}.json"
    requests = read_requests(path)
    expected = []
    for record in json.loads(path.read_text(encoding="utf-8")):
        near = Probe(record["locality_prompt"], record["locality_ground_truth"])
        expected.append(EditRequest.from_dict(record | {"locality": {"neighborhood": [near]}}))
    assert requests == expected
    assert read_requests(path, format="counterfact") == expected


@needs_data
def test_zsre_files():
    path = DATA / "zsre" / "zsre_mend_train.json"
    requests = read_requests(path, on_error="skip")
    made = json.loads(path.read_text(encoding="utf-8"))
    blank = [number for number, record in enumerate(made) if not record["alt"].strip()]
    assert [(error.record, error.field) for error in requests.skipped] == [
        (number, "alt") for number in blank
    ]
    kept = [record for record in made if record["alt"].strip()]
    assert len(kept) == len(requests) > 700
    for record, request in zip(kept, requests, strict=True):
        assert request.prompt == record["src"].rstrip()
        assert request.target_new == record["alt"].strip()
        assert request.ground_truth == record["answers"][0]
        assert request.rephrase_prompt == (record["rephrase"].rstrip(),)
        (near,) = request.locality["neighborhood"]
        assert "nq question: " + near.prompt == record["loc"].rstrip()
        assert near.ground_truth == record["loc_ans"]


@needs_data
def test_zsre_portability():
    path = DATA / "zsre" / "zsre_mend_eval_portability.json"
    for record, request in zip(json.loads(path.read_text()), read_requests(path), strict=True):
        hop = record["portability"]
        assert request.portability == {"one_hop": (Probe(hop["New Question"], hop["New Answer"]),)}
