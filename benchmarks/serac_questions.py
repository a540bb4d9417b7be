r"""Which questions SERAC's scope sends to an edit, worded as no prompt of its training is.

    python benchmarks/serac_questions.py --data counterfact-edit.json --records 500

The first records are in one memory. Of each whose prompt has a wording that is known here, its
question is asked, which shall go to the edit; and a question about another fact of the same
subject, which shall go to none.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import re
from pathlib import Path

import report

from easyedit_fast import Editor, EditRequest, read_requests
from easyedit_fast.metrics import mean_interval


@dataclasses.dataclass(frozen=True)
class Asked:
    """A fact.

    Attributes:
        kind: What has it.
        pattern: Of the prompts that say it, with ``{}`` for the subject.
        question: The question that asks it.
    """

    kind: str
    pattern: str
    question: str


FACTS = (
    Asked("person", "(mother tongue|native language) of|{} speaks|spoke|, a native$",
          "What language would {} have talked in at home?"),
    Asked("person", "citizen", "What passport does {} carry?"),
    Asked("person", "died|passed away|life|expired|succumbed",
          "Do you know the place of death of {}?"),
    Asked("person", "{} was born in|native to|originally from|originates from",
          "Can you tell me the birthplace of {}?"),
    Asked("person", "worked in|to work in|employed in|employment in",
          "Which town was the workplace of {}?"),
    Asked("person", "profession|occupation|works as", "What job does {} have?"),
    Asked("person", "field of|area of|domain of|expertise|specializes",
          "What subject is {} a specialist in?"),
    Asked("person", "plays as|the position( of)?$|Which position",
          "Where on the team does {} play?"),
    Asked("person", "sport|is a professional$", "What game does {} play professionally?"),
    Asked("person", "instrument|perform(s|ing) on|playing the|{} plays the$",
          "Tell me what {} plays, which instrument?"),
    Asked("person", "religion|follower of", "What faith does {} practise?"),
    Asked("place", "continent", "Which part of the world is {} in, which continent?"),
    Asked("place", "twin city", "Name a city that {} is paired with as its twin."),
    Asked("place", "capital", "From which city is {} governed?"),
    Asked("place", "official language|law in|they understand|language spoken",
          "What language do the people of {} officially use?"),
    Asked("place", "located in$|{} is in$|found in$|location of|is within",
          "Where would I have to go to see {}?"),
    Asked("thing", "headquarter|is based in", "In what city does {} have its main office?"),
    Asked("thing", "owner|owned by", "Whose property is {}?"),
    Asked("thing", "(created|developed|produced|manufactured) by|product of",
          "Which firm is behind {}?"),
    Asked("thing", "debut|premiere|released on|aired on",
          "What TV network was {} first seen on?"),
    Asked("thing", "(named|called) (after|for)", "Where did {} get its name?"),
    Asked("thing", "(original language|language) of {} (is|was)|written in",
          "What language was used when {} was first released?"),
    Asked("thing", "(formed|founded|started|originated|created|formulated) in",
          "What is the place where {} began?"),
)  # fmt: skip


def main() -> None:
    """Parses the options, fills the memory, asks, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--records", type=int, default=500)
    parser.add_argument("--archive", type=Path, help="a scope and adapter of ours")
    options = parser.parse_args()
    read = read_requests(options.data, limit=options.records)
    requests = list({request.prompt: request for request in read}.values())
    hparams = {} if options.archive is None else {"archive": str(options.archive)}
    editor = Editor.from_pretrained("demo", method="serac", hparams=hparams, device="cpu")
    ids = dict(zip(editor.method.memory.add(requests), requests, strict=True))
    draw = random.Random(0)
    own: list[float] = []
    others: list[float] = []
    for request, fact in known(requests):
        other = draw.choice([one for one in FACTS if one.kind == fact.kind and one != fact])
        asked = [one.question.replace("{}", request.subject) for one in (fact, other)]
        first, second = (route.edit for route in editor.model.routes(asked))
        own.append(float(first is not None and ids[first.id].prompt == request.prompt))
        others.append(float(second is None))
    report.write(
        "serac_questions",
        "SERAC: questions worded as no prompt of the training",
        f"python benchmarks/serac_questions.py --data {options.data.name} --records "
        f"{options.records}",
        ["asked", "shall go to", "went there"],
        [
            ["the edited fact, as a question", "its edit", shown(own)],
            ["another fact of the edited subject, as a question", "none", shown(others)],
        ],
        [
            (
                f"{len(requests)} edits in the memory; means with 95 % intervals, and how many "
                "were asked. Of the other facts some are such that nobody would ask them."
            )
        ],
    )


def known(requests: list[EditRequest]) -> list[tuple[EditRequest, Asked]]:
    """The records whose prompts say a known fact, with that fact; the first that fits."""
    found = []
    for request in requests:
        wording = request.prompt.replace(request.subject, "{}")
        facts = [fact for fact in FACTS if re.search(fact.pattern, wording)]
        if facts:
            found.append((request, facts[0]))
    return found


def shown(values: list[float]) -> str:
    """A mean, its interval, and of how many."""
    mean = mean_interval(values)
    return f"{mean.mean:.3f} ({mean.low:.3f} – {mean.high:.3f}), {mean.count}"


if __name__ == "__main__":
    main()
