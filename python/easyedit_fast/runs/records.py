"""A part of a data file, and what tells it from others."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, Literal

from easyedit_fast.data import RequestList, read_requests
from easyedit_fast.errors import RequestError
from easyedit_fast.files import digest


@dataclasses.dataclass(frozen=True)
class Records:
    """Some records of a data file.

    Attributes:
        path: The file.
        requests: Their requests; ``requests.records`` are their numbers in the file.
        identity: What tells these records from others: the file's digest, and which part of it.
    """

    path: Path
    requests: RequestList
    identity: dict[str, Any]

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        *,
        limit: int | None = None,
        offset: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> Records:
        """Reads them; see `read_requests` for the arguments and the other errors.

        Raises:
            RequestError: There is no record, or none that can be used.
        """
        requests = read_requests(path, limit=limit, offset=offset, on_error=on_error)
        if requests.skipped and not requests:
            raise RequestError(f"no record of {os.fspath(path)} can be used; {requests.skipped[0]}")
        if not requests:
            beyond = f" from record {offset} on" if offset else ""
            raise RequestError(f"{os.fspath(path)} holds no record{beyond}; there is nothing to do")
        # Not the limit, nor what is skipped: a run may go on with more records.
        identity = {"sha256": digest(Path(path)), "offset": offset}
        return cls(Path(path), requests, identity)
