r"""The server under load: latencies of many clients, while edits are added and reverted.

    python benchmarks/serving.py --data counterfact-edit.json

Three servers of the demo model, each a process with a memory of ``--edits`` edits, get the same
requests: one from ``--clients`` clients at a time, one from a single client, and one from
``--clients`` clients with ``--max-batch 1``. They take turns, a quarter of the requests each; the
last one gets the first quarter alone. Of a hundred requests 45 route a prompt, 30 complete one
(8 tokens, greedy), 18 add an edit and 7 revert one.

Each answer's route is checked afterwards: it must be the one of a memory that holds all edits
which were there when the request was sent, and perhaps some that came or went meanwhile. No edit
that was acknowledged may be missing, before or after a restart. The exit code tells.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import report
from serving_check import Answer, Kept, Plan, lost_edits, plan, wrong_routes

from easyedit_fast import EditRequest, read_requests

_TOKENS = 8
_PARTS = 4
_PERCENTILES = (50, 90, 95, 99)
_KINDS = (
    "routing a prompt", "completion, out of scope", "completion, in scope", "adding an edit",
    "reverting an edit",
)  # fmt: skip


def main() -> None:
    """Parses the options, asks, checks, writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--edits", type=int, default=500, help="in the memory at the start")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    read = read_requests(options.data, limit=options.edits + options.requests, on_error="skip")
    records = list({request.prompt: request for request in read}.values())
    asked = plan(len(records), options.edits, options.requests)
    many = f"{options.clients} clients"
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:

        def way(name: str, parts: int, clients: int, *arguments: str) -> Way:
            memory = Path(folder) / f"{name}.sqlite"
            return Way(stack, memory, records, options.edits, parts, clients, *arguments)

        ways = {
            many: way("many", _PARTS, options.clients),
            "1 client": way("one", _PARTS, 1),
            f"{many}, --max-batch 1": way("alone", 1, options.clients, "--max-batch", "1"),
        }
        take_turns(ways, asked)
        faults = [fault for way in ways.values() for fault in way.faults()]
    write(options, ways, many, faults)
    for fault in faults:
        print(fault, file=sys.stderr)
    sys.exit(bool(faults))


def take_turns(ways: dict[str, Way], asked: Sequence[Plan]) -> None:
    """Has the parts of the requests sent each way; every other part in the opposite order."""
    for number, part in enumerate(np.array_split(np.arange(len(asked)), _PARTS)):
        for name in list(ways) if number % 2 == 0 else list(ways)[::-1]:
            if number < ways[name].parts:
                seconds = ways[name].send([asked[place] for place in part])
                print(f"part {number + 1}: {name} {seconds:.1f} s", flush=True)


class Way:
    """A server with a memory of its own, and how many clients ask it.

    Attributes:
        parts: Of the requests, how many it is sent.
        answers: All answers so far.
        seconds: That they took, by the part of the requests.
    """

    def __init__(
        self,
        stack: contextlib.ExitStack,
        memory: Path,
        records: Sequence[EditRequest],
        edits: int,
        parts: int,
        clients: int,
        *arguments: str,
    ) -> None:
        """Starts the server, which ends with the stack, and adds the first edits."""
        self.parts = parts
        self.answers: list[Answer] = []
        self.seconds: list[float] = []
        self._records, self._memory, self._clients = records, memory, clients
        self._stack = contextlib.ExitStack()
        stack.enter_context(self._stack)
        self._url, _ = self._stack.enter_context(server(memory, *arguments))
        self._own = threading.local()
        sent = time.monotonic()
        first = [body(record) for record in records[:edits]]
        ids = [
            one["id"]
            for start in range(0, edits, 100)
            for one in self._http()
            .post("/v1/edits", json=first[start : start + 100])
            .json()["data"]
        ]
        now = time.monotonic()
        self.kept = {record: Kept(record, id_, sent, now) for record, id_ in enumerate(ids)}

    def send(self, part: Sequence[Plan]) -> float:
        """Sends requests, each client its next one when it has an answer; gives the seconds."""
        self._ready = {one.record: threading.Event() for one in part if one.kind == "add"}
        began = time.perf_counter()
        with ThreadPoolExecutor(self._clients) as clients:
            self.answers += list(clients.map(self._ask, part))
        self.seconds.append(time.perf_counter() - began)
        return self.seconds[-1]

    def faults(self) -> list[str]:
        """Wrong routes and lost edits; the server ends for it, and another one reads the file."""
        lines = self._http().get("/v1/edits/export").text.splitlines()
        held = [json.loads(line) for line in lines]
        self._stack.close()
        with server(self._memory) as (url, count), httpx.Client(base_url=url) as http:
            listed: list[Any] = []
            while page := http.get(
                "/v1/edits", params={"limit": 1000, "after": listed[-1]["id"] if listed else 0}
            ).json()["data"]:
                listed += page
        wrong = wrong_routes(self.answers, list(self.kept.values()), self._records)
        return [*lost_edits(self.kept, self._records, held, listed, count), *wrong]

    def _http(self) -> httpx.Client:
        """This thread's client of what OpenAI's has not."""
        if not hasattr(self._own, "http"):
            self._own.http = httpx.Client(base_url=self._url, timeout=300)
            self._own.openai = openai.OpenAI(
                base_url=f"{self._url}/v1", api_key="none", max_retries=0, timeout=300
            )
        made: httpx.Client = self._own.http
        return made

    def _ask(self, one: Plan) -> Answer:
        if one.kind == "revert" and one.record in self._ready:
            self._ready[one.record].wait(300)  # another client adds it
        http, prompt = self._http(), self._records[one.record].prompt
        sent = time.monotonic()
        kind, edit = getattr(self, f"_{one.kind}")(http, one.record, prompt)
        answer = Answer(kind, prompt, sent, time.monotonic(), edit)
        if one.kind == "add":
            self.kept[one.record] = Kept(one.record, edit, sent, answer.ended)
            self._ready[one.record].set()
        elif one.kind == "revert":
            self.kept[one.record].reverted(sent, answer.ended)
        return answer

    def _route(self, http: httpx.Client, _: int, prompt: str) -> tuple[str, int | None]:
        answer = http.post("/v1/route", json={"prompts": [prompt]}).raise_for_status()
        return _KINDS[0], answer.json()["data"][0]["edit"]

    def _complete(self, _: httpx.Client, __: int, prompt: str) -> tuple[str, int | None]:
        answer = self._own.openai.completions.create(
            model="demo", prompt=prompt, max_tokens=_TOKENS, temperature=0
        )
        edit: int | None = answer.choices[0].edit
        return _KINDS[1 if edit is None else 2], edit

    def _add(self, http: httpx.Client, record: int, _: str) -> tuple[str, int]:
        answer = http.post("/v1/edits", json=body(self._records[record])).raise_for_status()
        return _KINDS[3], answer.json()["data"][0]["id"]

    def _revert(self, http: httpx.Client, record: int, _: str) -> tuple[str, int]:
        id_ = self.kept[record].id
        http.delete(f"/v1/edits/{id_}").raise_for_status()
        return _KINDS[4], id_


@contextlib.contextmanager
def server(memory: Path, *arguments: str) -> Iterator[tuple[str, int]]:
    """``easyedit-fast serve`` of the demo model; gives its address, and the edits that it has."""
    command = [sys.executable, "-m", "easyedit_fast", "serve", "--port", "0", "--json"]
    with subprocess.Popen(
        [*command, "--memory", str(memory), *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            told = json.loads(process.stdout.readline())
            yield told["url"], told["edits"]
        finally:
            process.terminate()


def body(record: EditRequest) -> dict[str, str]:
    """What is posted of a record."""
    return {name: getattr(record, name) for name in ("prompt", "subject", "target_new")}


def write(options: Any, ways: dict[str, Way], many: str, faults: Sequence[str]) -> None:
    """Two tables: latencies, and throughput."""
    command = f"python benchmarks/serving.py --data {options.data.name}"
    rows = [
        [kind, name, *latencies([one for one in way.answers if one.kind == kind])]
        for kind in _KINDS
        for name, way in ways.items()
    ]
    columns = ["request", "sent by", "requests", *(f"p{part}" for part in _PERCENTILES)]
    checked = sum(len(way.answers) for way in ways.values())
    note = (
        f"Milliseconds. {options.edits} edits in the memory at the start; completions are of "
        f"{_TOKENS} tokens. {checked} answers were checked: {len(faults)} wrong routes and lost "
        "edits, before and after a restart."
    )
    report.write("serving", "Serving: latency", command, columns, rows, [note])
    speeds = {name: len(way.answers) / sum(way.seconds) for name, way in ways.items()}
    rows = [
        [
            name,
            str(len(way.answers)),
            f"{sum(way.seconds):.1f}",
            f"{speeds[name]:.1f}",
            f"{speeds[many] / speeds[name]:.1f}×",
        ]
        for name, way in ways.items()
    ]
    columns = ["sent by", "requests", "seconds", "requests a second", f"ratio of {many}"]
    note = f"The same requests, in {_PARTS} parts that the servers took in turn."
    report.write("serving_throughput", "Serving: throughput", command, columns, rows, [note])


def latencies(answers: Sequence[Answer]) -> list[str]:
    """How many there are, and the percentiles of their milliseconds."""
    if not answers:
        return ["0", *("" for _ in _PERCENTILES)]
    times = [1000 * (one.ended - one.sent) for one in answers]
    return [str(len(times)), *(f"{value:.0f}" for value in np.percentile(times, _PERCENTILES))]


if __name__ == "__main__":
    main()
