"""What ``/v1/route`` takes, and what its page says of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from easyedit_fast.serving.limits import Limits
from tests.end_to_end.servers import client, edit, serving, untrained_editor


@pytest.fixture(scope="module")
def http(demo_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a server with two edits."""
    archive = untrained_editor(tmp_path_factory.mktemp("serac"))
    with (
        serving(demo_model, archive, None, Limits(prompt_tokens=100)) as address,
        httpx.Client(base_url=address, timeout=60) as own,
    ):
        assert own.post("/v1/edits", json=[edit(0), edit(1)]).is_success
        yield own


def test_messages_are_routed_as_a_chat_is(http: httpx.Client) -> None:
    messages: list[Any] = [
        {"role": "user", "content": edit(0)["prompt"]},
        {"role": "assistant", "content": "In Rome."},
        {"role": "user", "content": [{"type": "text", "text": edit(1)["prompt"]}]},
    ]
    (route,) = http.post("/v1/route", json={"messages": messages}).json()["data"]
    chat = client(str(http.base_url)).chat.completions
    choice: Any = chat.create(model="demo", messages=messages, max_tokens=1).choices[0]
    assert route["edit"] == choice.edit == 2
    assert route["similarity"] == pytest.approx(choice.similarity, abs=1e-4)
    among = http.post("/v1/route", json={"prompts": [messages, "Water boils at"]}).json()["data"]
    assert [one["edit"] for one in among] == [2, None]


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({}, "prompts", "is missing"),
    ({"messages": []}, "messages", "at least 1 item"),
    ({"messages": [{"role": "user"}]}, "messages", "content': is missing"),
    ({"messages": [{"role": "user", "content": "a"}], "prompts": ["a"]}, "prompts", "leave it out"),
    ({"messages": [{"role": "user", "content": "a " * 200}]}, "messages", "100 are the most"),
    ({"prompts": ["a", ""]}, "prompts", "is empty"),
]


@pytest.mark.parametrize(("body", "param", "message"), BAD)
def test_what_cannot_be_routed_is_named(
    http: httpx.Client, body: dict[str, Any], param: str, message: str
) -> None:
    answer = http.post("/v1/route", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert message in error["message"]


def test_an_empty_prompt_has_no_completion(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json={"prompt": ["a", ""], "max_tokens": 1})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


def test_the_page_tells_both_forms(http: httpx.Client) -> None:
    page = http.get("/openapi.json").json()
    body = page["paths"]["/v1/route"]["post"]["requestBody"]["content"]["application/json"]
    names = {one["$ref"].rpartition("/")[2] for one in body["schema"]["oneOf"]}
    fields = [list(page["components"]["schemas"][name]["properties"]) for name in names]
    assert sorted(fields) == [["messages"], ["prompts"]]
