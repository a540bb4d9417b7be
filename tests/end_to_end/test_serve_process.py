"""``easyedit-fast serve`` as a process: restarts, signals, other processes, its API page."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from easyedit_fast import Editor
from easyedit_fast.serving.limits import Limits
from tests.end_to_end.servers import ServerProcess, client, edit, serving, untrained_editor

pytestmark = pytest.mark.usefixtures("demo_model")  # says what is missing


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_editor(tmp_path_factory.mktemp("serac"))


def test_edits_outlive_the_process_and_come_from_others(
    demo_model: Any,
    archive: Path,
    tmp_path: Path,
) -> None:
    memory = tmp_path / "edits.sqlite"
    arguments = ["--archive", archive, "--memory", memory]
    with ServerProcess(*arguments) as server, server.http() as http:
        assert http.post("/v1/edits", json=[edit(0), edit(1)]).status_code == 200
        server.process.kill()
    with ServerProcess(*arguments) as server, server.http() as http:
        assert server.told["edits"] == 2
        other = Editor(
            *demo_model, method="serac", hparams={"archive": str(archive)}, memory=memory
        )
        (id_,) = other.edit(edit(2), evaluate=False).edits[0].ids  # type: ignore[attr-defined]
        prompts = [edit(number)["prompt"] for number in range(3)]
        answer = client(server.url).completions.create(model="demo", prompt=prompts, max_tokens=1)
        assert [one.edit for one in answer.choices] == [1, 2, id_]  # type: ignore[attr-defined]
        (route,) = http.post("/v1/route", json={"prompts": prompts[:1]}).json()["data"]
        assert route["edit"] == 1
        assert server.stop(signal.SIGINT) == (0, "")
    higher = (route["similarity"] + 1) / 2
    with ServerProcess(*arguments, "--threshold", higher) as server, server.http() as http:
        (found,) = http.post("/v1/route", json={"prompts": prompts[:1]}).json()["data"]
    assert found == {"edit": None, "similarity": pytest.approx(route["similarity"], rel=1e-4)}


@pytest.mark.parametrize("patience", [90, 0])
def test_it_stops_when_what_runs_has_ended(
    archive: Path,
    tmp_path: Path,
    patience: int,
) -> None:
    found: list[Any] = []
    with ServerProcess(
        "--archive", archive, "--memory", tmp_path / "edits.sqlite", "--stop-seconds", patience
    ) as server:

        def ask() -> None:
            try:
                asked = {"prompt": "Once", "max_tokens": 40, "temperature": 1.5, "seed": 1}
                answer = httpx.post(f"{server.url}/v1/completions", json=asked, timeout=120)
                found.append(answer.status_code)
            except httpx.HTTPError as error:
                found.append(type(error))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        began = time.monotonic()
        code, errors = server.stop()
        for thread in threads:
            thread.join(30)
    assert code == 0
    if patience:
        assert found == [200] * 4
        assert errors == ""
    else:
        assert found == [503] * 4
        assert errors.startswith("warning: 4 answers were cut off")
        assert time.monotonic() - began < 10


def test_a_second_ctrl_c_ends_streams_with_an_error(archive: Path, tmp_path: Path) -> None:
    found: list[Any] = []
    arguments = ["--archive", archive, "--memory", tmp_path / "edits.sqlite", "--stop-seconds", 60]
    with ServerProcess(*arguments) as server:

        def listen() -> None:
            try:
                found.extend(
                    client(server.url, timeout=60).completions.create(
                        model="demo", prompt="Once", max_tokens=1000, temperature=1.5, stream=True
                    )
                )
            except openai.APIError as error:
                found.append(error)

        thread = threading.Thread(target=listen)
        thread.start()
        while not found:
            time.sleep(0.05)
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        began = time.monotonic()
        code, errors = server.stop(signal.SIGINT)
        assert time.monotonic() - began < 20
        thread.join(30)
    assert code == 0
    assert "the server is stopping" in str(found[-1])
    assert errors == "warning: 1 answer was cut off; --stop-seconds gives more time\n"


def test_its_own_page_tells_what_it_does(demo_model: Any, archive: Path) -> None:
    import schemathesis
    from hypothesis import HealthCheck, given, settings
    from schemathesis import checks

    limits = Limits(max_tokens=2, n=2, prompts=4)  # whatever is drawn takes little time
    with serving(demo_model, archive, None, limits) as address:
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
        names = (
            "not_a_server_error", "status_code_conformance", "content_type_conformance",
            "response_schema_conformance", "negative_data_rejection",
        )  # fmt: skip
        wanted = [checks.CHECKS.get_one(name) for name in names]
        seen = set()
        for result in schema.get_all_operations():
            operation = result.ok()
            seen.add((operation.method, operation.path))
            kinds = [
                operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode
            ]

            @settings(
                max_examples=20, deadline=None, database=None, derandomize=True,
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(kinds[0] | kinds[1])
            def look(case: Any) -> None:
                case.call_and_validate(checks=wanted, timeout=60)

            look()
        assert len(seen) == 12
