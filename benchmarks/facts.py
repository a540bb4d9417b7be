"""Facts that CounterFact's prompts say, and questions that ask them in words of their own.

None of the questions is worded as a prompt that SERAC's scope is trained on.
"""

from __future__ import annotations

import dataclasses
import re

from easyedit_fast import EditRequest


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

    def about(self, subject: str) -> str:
        """The question about a subject."""
        return self.question.replace("{}", subject)


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


def known(requests: list[EditRequest]) -> list[tuple[EditRequest, Asked]]:
    """The records whose prompts say a known fact, with that fact; the first that fits."""
    found = []
    for request in requests:
        wording = request.prompt.replace(request.subject, "{}")
        facts = [fact for fact in FACTS if re.search(fact.pattern, wording)]
        if facts:
            found.append((request, facts[0]))
    return found
