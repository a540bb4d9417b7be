"""Edit requests from files, and their tokens; the only place that imports the Rust module."""

from easyedit_fast.data.native import LoaderStatus, loader_status
from easyedit_fast.data.records import RequestList, read_requests
from easyedit_fast.data.tokenizer import RequestTokenizer, TokenBatch

__all__ = [
    "LoaderStatus",
    "RequestList",
    "RequestTokenizer",
    "TokenBatch",
    "loader_status",
    "read_requests",
]
