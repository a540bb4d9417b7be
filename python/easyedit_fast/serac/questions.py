"""Prompts to be continued, asked as questions: users ask, and the data sets' prompts seldom do."""

from __future__ import annotations

import re

_NAMED = re.compile(r"(?s)The (?P<what>.+) (?P<verb>is|was|are|were)")
_SAID = re.compile(r"(?s)(?P<who>.+?) (?P<verb>is|was|are|were) (?P<what>.+)")


def as_question(prompt: str) -> str | None:
    """An English prompt as a question, where its form is a simple one; else None.

    "The mother tongue of Ada is" and "Ada is a citizen of" become "What is the mother tongue of
    Ada?" and "What is Ada a citizen of?".
    """
    found = _NAMED.fullmatch(prompt)
    if found is not None:
        return f"What {found['verb']} the {found['what']}?"
    found = _SAID.fullmatch(prompt)
    if found is not None and not prompt.endswith(("?", "is", "was", "are", "were")):
        who = re.sub("^The ", "the ", found["who"])
        return f"What {found['verb']} {who} {found['what']}?"
    return None
