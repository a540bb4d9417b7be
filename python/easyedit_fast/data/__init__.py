"""Requests and texts from files, and their tokens; the one place that imports the Rust module."""

from easyedit_fast.data.batches import RequestBatch, SectionBatch, read_batches
from easyedit_fast.data.corpus import Corpus, HubDataset, TextFiles
from easyedit_fast.data.native import LoaderStatus, loader_status
from easyedit_fast.data.records import RequestList, read_requests
from easyedit_fast.data.tokenizer import RequestTokenizer, TokenBatch

__all__ = [
    "Corpus",
    "HubDataset",
    "LoaderStatus",
    "RequestBatch",
    "RequestList",
    "RequestTokenizer",
    "SectionBatch",
    "TextFiles",
    "TokenBatch",
    "loader_status",
    "read_batches",
    "read_requests",
]
