"""``easyedit-fast memory``: the edits in a memory's file; most of it needs no model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from easyedit_fast.cli import options
from easyedit_fast.cli.destinations import require_file_path, require_new_file
from easyedit_fast.cli.given import records_of
from easyedit_fast.cli.output import print_json, print_line, print_table

if TYPE_CHECKING:
    from easyedit_fast.serac.store import SqliteStore, StoredEdit

_MOST = (1 << 63) - 1  # ids of SQLite
_SHOWN = 20

app = typer.Typer(
    help="List, find, remove, export and import the edits of a memory (SERAC's SQLite file).",
    no_args_is_help=True,
    rich_markup_mode=None,
)

File = Annotated[Path, typer.Argument(metavar="FILE", help="The memory's file.")]
Shown = Annotated[int, typer.Option("--limit", "-n", min=1, help="Edits that are shown at most.")]
Scope = Annotated[
    Optional[Path],  # noqa: UP045  typer reads the annotation at run time, on Python 3.10 too
    typer.Option(
        "--archive",
        help="SERAC's trained editor, whose scope the memory is of; unless given, that of the "
        "demo model.",
    ),
]


@app.command("list")
def list_edits(
    file: File,
    limit: Shown = _SHOWN,
    after: Annotated[int, typer.Option(min=0, max=_MOST, help="Only edits with a higher id.")] = 0,
    json: options.Json = False,
) -> None:
    """Show the edits by rising ids; needs no model.

    Example: easyedit-fast memory list edits.sqlite --limit 50
    """
    with _opened(file) as store:
        total = len(store)
        edits = store.listed(after)
        shown = list(itertools.islice(edits, limit))
        has_more = next(edits, None) is not None
    if json:
        told = {"memory": str(file), "total": total, "has_more": has_more}
        print_json({**told, "edits": [_told(edit) for edit in shown]})
        return
    _print("Edits", shown)
    print_line(f"{len(shown)} of {total:,} edits in {file}")
    if has_more:
        print_line(f"the next ones: --after {shown[-1].id}")


@app.command("search")
def search(
    file: File,
    prompt: Annotated[str, typer.Argument(help="Any wording of what is looked for.")],
    limit: Annotated[
        int,
        typer.Option(
            "--limit",
            "-n",
            min=1,
            help="Edits that are shown at most; of those with the same prompt the newest.",
        ),
    ] = 10,
    threshold: options.Threshold = None,
    archive: Scope = None,
    json: options.Json = False,
) -> None:
    """Find the edits that are nearest to a prompt, and the one, if any, that answers it.

    Example: easyedit-fast memory search edits.sqlite "What does Danielle Darrieux speak?"
    """
    if not prompt.strip():
        raise typer.BadParameter("the prompt is empty; give a text")
    with _opened(file) as store:
        from easyedit_fast.serac.memory import EditMemory
        from easyedit_fast.serac.routing import Router
        from easyedit_fast.serac.trained import trained_scope

        scope = trained_scope(archive)
        router = Router(scope, EditMemory(store, scope))
        if threshold is not None:
            router.threshold = threshold
        found = router.search(prompt, limit)
    edits = [edit for edit, _ in found]
    similarities = [similarity for _, similarity in found]
    answers = edits[0].id if found and similarities[0] > router.threshold else None
    if json:
        pairs = zip(edits, similarities, strict=True)
        told = [{**_told(edit), "similarity": value} for edit, value in pairs]
        print_json({"memory": str(file), "prompt": prompt, "answers": answers, "edits": told})
        return
    _print("The nearest edits", edits, {"similarity": similarities})
    print_line("no edit answers it" if answers is None else f"edit {answers} answers it")


@app.command("remove")
def remove(
    file: File,
    ids: Annotated[list[int], typer.Argument(min=1, max=_MOST, help="Ids, as 'list' has them.")],
    json: options.Json = False,
) -> None:
    """Take edits out, all of them or none; needs no model.

    Example: easyedit-fast memory remove edits.sqlite 3 7
    """
    from easyedit_fast.serac.store import SqliteStore

    _opened(file).close()  # what is no memory is refused before anything is written to it
    given = list(dict.fromkeys(ids))
    with SqliteStore(file) as store:
        store.remove(given)
        left = len(store)
    if json:
        print_json({"memory": str(file), "removed": given, "total": left})
    else:
        print_line(f"removed: {_numbers(given)}; {left:,} left in {file}")


@app.command("export")
def export(
    file: File,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New file of requests (JSONL).")],
    json: options.Json = False,
) -> None:
    """Write the requests as JSON lines, for 'import', 'edit' and read_requests; needs no model.

    Example: easyedit-fast memory export edits.sqlite requests.jsonl
    """
    require_new_file(out, "OUT")
    with _opened(file) as store:
        total = len(store)
        store.export(out)
    if json:
        print_json({"memory": str(file), "out": str(out), "total": total})
    else:
        print_line(f"{total:,} edits of {file} written to {out}")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The memory's file; made if new.")],
    records: Annotated[
        Path,
        typer.Argument(metavar="IN", help="Requests (JSON, JSONL), CounterFact, zsRE or KnowEdit."),
    ],
    limit: options.Limit = None,
    offset: options.Offset = 0,
    skip_bad: options.SkipBad = False,
    archive: Scope = None,
    json: options.Json = False,
) -> None:
    """Add the requests of a file, all of them or none.

    Example: easyedit-fast memory import edits.sqlite requests.jsonl
    """
    require_file_path(file, "FILE")
    if file.exists():
        _opened(file).close()
    read = records_of(records, limit=limit, offset=offset, skip_bad=skip_bad)
    from easyedit_fast.serac.memory import EditMemory
    from easyedit_fast.serac.store import SqliteStore
    from easyedit_fast.serac.trained import trained_scope

    scope = trained_scope(archive)
    with SqliteStore(file) as store:
        memory = EditMemory(store, scope)
        ids = memory.add(read.requests)
        told = told_of_added(file, ids, memory.superseded(ids))
    if json:
        print_json({"memory": str(file), **told})
    else:
        print_added(file, told)


def told_of_added(file: Path, ids: Sequence[int], superseded: Sequence[int]) -> dict[str, Any]:
    """What a command that has added edits to a memory tells of them, as plain JSON values."""
    with _opened(file) as store:
        return {"added": list(ids), "superseded": list(superseded), "total": len(store)}


def print_added(file: Path, told: dict[str, Any]) -> None:
    """The same for people; `told` is of `told_of_added`."""
    print_line(f"added: {_numbers(told['added'])}; {told['total']:,} now in {file}")
    if told["superseded"]:
        print_line(
            f"superseded: {_numbers(told['superseded'])}; of edits with the same prompt the "
            "newest holds, until it is removed"
        )


def _opened(file: Path) -> SqliteStore:
    """The file, to be read alone; what is no memory is refused."""
    from easyedit_fast.serac.store import SqliteStore

    return SqliteStore(file, read_only=True)


def _told(edit: StoredEdit) -> dict[str, Any]:
    return {"id": edit.id, "added": edit.added, **edit.request.to_dict()}


def _print(
    title: str, edits: Sequence[StoredEdit], more: dict[str, Sequence[object]] | None = None
) -> None:
    """A table of edits, with further columns."""
    more = more or {}
    rows = [
        [edit.id, edit.added[:19], edit.request.prompt, edit.request.target_new, *values]
        for edit, *values in zip(edits, *more.values(), strict=True)
    ]
    print_table(title, ["id", "added (UTC)", "prompt", "target", *more], rows)


def _numbers(ids: Iterable[int]) -> str:
    """Ids as text, runs of them as ``first-last``."""
    runs: list[list[int]] = []
    for id_ in sorted(ids):
        if runs and id_ == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], id_]
        else:
            runs.append([id_])
    return ", ".join("-".join(map(str, run)) for run in runs)
