"""``easyedit-fast serve``: a model with an edit memory, over HTTP."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import typer

from easyedit_fast.cli import options
from easyedit_fast.cli.output import print_line, print_warning
from easyedit_fast.errors import EasyEditFastError

_PORTS = 1 << 16


def serve(
    model: options.Model = "demo",
    method: Annotated[str, typer.Option(help="Editing method; 'serac' has a memory.")] = "serac",
    memory: Annotated[
        Optional[Path],  # noqa: UP045  typer reads the annotation at run time, on Python 3.10 too
        typer.Option(help="File that holds the edits; made where it is not there."),
    ] = None,
    archive: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="SERAC's trained scope and adapter; unless given, the packaged one."),
    ] = None,
    index: Annotated[
        Optional[Literal["exact", "approximate"]],  # noqa: UP045
        typer.Option(
            help="How edits are found: by comparing a prompt with all of them, or by a graph, "
            "which is quicker and may miss one; it is made at the start, where there are 20,000 "
            "edits or more. 'exact' unless given."
        ),
    ] = None,
    threshold: options.Threshold = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    host: Annotated[
        str, typer.Option(help="Where to listen; other than loopback needs a token.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=_PORTS - 1, help="Port; 0: any that is free.")
    ] = 8000,
    token_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="File with the bearer token that clients send; unless given, "
            "EASYEDIT_FAST_TOKEN of the environment."
        ),
    ] = None,
    max_body_bytes: Annotated[int, typer.Option(min=1, help="Bytes of a request.")] = 1 << 20,
    max_prompt_tokens: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Tokens of a prompt; unless given, what the model reads."),
    ] = None,
    max_prompts: Annotated[int, typer.Option(min=1, help="Prompts of a request.")] = 64,
    max_edits: Annotated[int, typer.Option(min=1, help="Edits of a request or page.")] = 1000,
    max_edit_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of an edit's prompt and target.")
    ] = 512,
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens of an answer.")] = 1024,
    max_n: Annotated[int, typer.Option(min=1, help="Answers to a prompt.")] = 8,
    max_requests: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 64,
    max_batch: Annotated[int, typer.Option(min=1, help="Answers that are made together.")] = 16,
    max_batch_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of these, pads and new ones included.")
    ] = 1 << 14,
    stop_seconds: Annotated[
        int, typer.Option(min=0, help="What running requests get to end after SIGTERM or Ctrl-C.")
    ] = 30,
    json: options.Json = False,
) -> None:
    """Serve a model with its edits: an edit API, and completions as OpenAI has them.

    Example: easyedit-fast serve --model demo --method serac --memory edits.sqlite
    """
    from easyedit_fast.serving.app import require_packages
    from easyedit_fast.serving.limits import Limits
    from easyedit_fast.serving.server import Service, listen, read_token, run

    require_packages()
    limits = Limits(
        body_bytes=max_body_bytes,
        prompt_tokens=max_prompt_tokens,
        prompts=max_prompts,
        edits=max_edits,
        edit_tokens=max_edit_tokens,
        max_tokens=max_tokens,
        n=max_n,
        requests=max_requests,
        batch_rows=max_batch,
        batch_tokens=max_batch_tokens,
    )
    token = read_token(token_file)
    # Before the model is loaded: what is wrong here is told at once.
    with listen(host, port, has_token=token is not None) as listener:
        given = {
            "archive": None if archive is None else str(archive),
            "memory_index": index,
            "threshold": threshold,
        }
        editor = _editor(model, method, given, memory, device=device, dtype=dtype)
        service = Service(editor, model, limits, token)

        def ready(address: str) -> None:
            _tell(address, model, memory, len(service.memory), json=json)

        cut_off = run(service, listener, stop_seconds=stop_seconds, ready=ready)
    words = _last_words(memory)
    _close(editor.method.memory)  # last, and so it is that leaves the file whole
    if cut_off:
        what = "answer was" if cut_off == 1 else "answers were"
        print_warning(f"{cut_off} {what} cut off; --stop-seconds gives more time")
    if not json:
        with contextlib.suppress(OSError):  # whoever read the first line may have gone
            print(words, flush=True)


def _editor(
    model: str,
    method: str,
    given: dict[str, Any],
    memory: Path | None,
    **loading: Any,
) -> Any:
    from easyedit_fast.editor import Editor

    if method.lower() != "serac":
        from easyedit_fast.methods import method_factory

        method_factory(method)  # one that is unknown is named first
        raise typer.BadParameter(
            f"--method {method} has no memory of edits; serve with --method serac, or give a "
            "model that is edited already to any other server"
        )
    if memory is None:
        print_warning("the edits are kept in this process alone; --memory names a file for them")
    hparams = {name: value for name, value in given.items() if value is not None}
    return Editor.from_pretrained(
        model, method=method, hparams=hparams or None, memory=memory, **loading
    )


def _tell(address: str, model: str, memory: Path | None, edits: int, *, json: bool) -> None:
    if json:
        import json as format_

        place = None if memory is None else str(memory)
        told = {"url": address, "model": model, "memory": place, "edits": edits}
        print(format_.dumps(told), flush=True)  # one line, for what starts the server to read
    else:
        print_line(f"serving {model} with {_count(edits)} on {address}; Ctrl-C stops it")


def _close(memory: Any) -> None:
    """Leaves the file tidy, unless a client's edit still waits for another process's writer."""
    closing = threading.Thread(target=memory.close, daemon=True)
    closing.start()
    closing.join(1)


def _last_words(memory: Path | None) -> str:
    """Where the edits are, as the file tells: it may be another's by now, or gone."""
    from easyedit_fast.serac.store import SqliteStore

    if memory is None:
        return "stopped; the edits are gone, for no --memory named a file"
    try:
        with SqliteStore(memory, read_only=True) as store:
            edits = len(store)
    except EasyEditFastError as error:
        return f"stopped; {error}"
    return f"stopped; {_count(edits)} {'is' if edits == 1 else 'are'} in {memory}"


def _count(edits: int) -> str:
    return "1 edit" if edits == 1 else f"{edits} edits"
