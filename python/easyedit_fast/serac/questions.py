"""Prompts to be continued, asked as questions: users ask, and the data sets' prompts seldom do."""

from __future__ import annotations

import re

_NAMED = re.compile(r"(?s)The (?P<what>.+) (?P<verb>is|was|are|were)")
_DONE = re.compile(r"(?s)(?P<what>.+?) (?:is|was|are|were) (?P<verb>[a-z]+ed) by")
_PLACED = re.compile(r"(?s)(?P<what>.+?) (?P<verb>is|was|are|were) (?P<how>[a-z]+ed|born) in")
_SAID = re.compile(r"(?s)(?P<who>.+?) (?P<verb>is|was|are|were) (?P<what>.+)")
_CLAUSE = re.compile(r", (?:who|whose|which|that)\b|\b(?:a|an|the)$")

_OF_A_WORDING: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("religion|follower of", ("What is the religion of {}?", "Which religion does {} follow?")),
    (
        "official language|law in|they understand|language spoken",
        ("What is the official language of {}?", "Which language is spoken in {}?"),
    ),
    (
        "mother tongue|native language|speak|spoke|, a native$|language used|writes in",
        ("Which language does {} speak?", "What is the mother tongue of {}?"),
    ),
    (
        "original language|language of {} (is|was)|{} (is|was) written in",
        ("What is the original language of {}?", "In which language was {} made?"),
    ),
    ("continent", ("On which continent is {}?", "What continent does {} belong to?")),
    ("citizen", ("What is the nationality of {}?", "Which country is {} a citizen of?")),
    ("twin city", ("What is the twin city of {}?", "Which city is {} twinned with?")),
    ("capital", ("What is the capital of {}?", "Which city is the capital of {}?")),
    ("headquarter|is based in", ("Where are the headquarters of {}?", "Where is {} based?")),
    ("died|passed away|life|expired|succumbed", ("Where did {} die?", "In which city did {} die?")),
    (
        "worked in|to work in|employed in|employment in|up work in",
        ("Where did {} work?", "In which city did {} work?"),
    ),
    ("works for|employed by", ("Who does {} work for?", "Who is the employer of {}?")),
    (
        "profession is|profession of|occupation|works as",
        ("What is the occupation of {}?", "What does {} do for a living?"),
    ),
    (
        "field of|area of|domain of|expertise|specializes",
        ("In which field does {} work?", "What is {} an expert in?"),
    ),
    ("sport|is a professional$", ("What sport does {} play?", "Which sport is {} known for?")),
    (
        "plays as|plays (in )?the position|position does",
        ("What position does {} play?", "In which position does {} play?"),
    ),
    (
        "the instrument|perform(s|ing) on|playing the|{} plays the$",
        ("Which instrument does {} play?", "What instrument is {} known for?"),
    ),
    ("genre|for performing", ("What kind of music does {} play?", "What is the genre of {}?")),
    (
        "holds the|the position of|{}'s position|has the position|position is that",
        ("What position does {} hold?", "Which title does {} have?"),
    ),
    ("owner|owned by", ("Who owns {}?", "Who is the owner of {}?")),
    (
        "(created|developed|produced|manufactured|made) by|product of",
        ("Who makes {}?", "Which company created {}?", "Who developed {}?"),
    ),
    (
        "debut|premiere|released on|aired on",
        ("On which channel did {} premiere?", "Which network first showed {}?"),
    ),
    ("(named|called) (after|for)", ("What is {} named after?", "Who or what was {} named for?")),
    ("label|recorded for|record company", ("Which record label is {} with?",)),
    (
        "affiliated|organization|part of the$|member of",
        ("Which organization does {} belong to?", "What is {} a member of?"),
    ),
    (
        "was born in|from$|native to|originat(es|ed) from",
        ("Where was {} born?", "Where does {} come from?"),
    ),
    (
        "(formed|founded|started|originated|created|developed|formulated) in",
        ("Where was {} founded?", "Where does {} come from?", "Where was {} created?"),
    ),
    (
        "located|{} is in$|found in|location of|is within|, in$",
        ("Where is {}?", "Where is {} located?"),
    ),
)
"""What a wording says of ``{}``, as a pattern, and questions that ask the same; the first holds."""


def as_questions(prompt: str, subject: str | None = None) -> list[str]:
    """An English prompt to be continued, as questions; none where its form is not known.

    "The mother tongue of Ada is" and "The engine was invented by" become "What is the mother tongue
    of Ada?" and "Who invented the engine?". Where its subject is known, questions in other words
    come beside these: "Which language does Ada speak?".

    Args:
        prompt: The prompt.
        subject: What of it is its subject.
    """
    found = _by_form(prompt)
    questions = [] if found is None else [found]
    if subject is not None:
        wording = prompt.replace(subject, "{}")
        for pattern, asked in _OF_A_WORDING:
            if re.search(pattern, wording):
                questions += [subject.join(one.split("{}")) for one in asked]
                break
    return list(dict.fromkeys(questions))


def _by_form(prompt: str) -> str | None:
    if "?" in prompt or _CLAUSE.search(prompt):
        return None
    if found := _NAMED.fullmatch(prompt):
        return f"What {found['verb']} the {found['what']}?"
    if found := _DONE.fullmatch(prompt):
        return f"Who {found['verb']} {_inside(found['what'])}?"
    if found := _PLACED.fullmatch(prompt):
        return f"Where {found['verb']} {_inside(found['what'])} {found['how']}?"
    found = _SAID.fullmatch(prompt)
    if found is not None and not prompt.endswith(("is", "was", "are", "were")):
        return f"What {found['verb']} {_inside(found['who'])} {found['what']}?"
    return None


def _inside(text: str) -> str:
    """A text that began a sentence, inside one."""
    return re.sub("^The ", "the ", text)
