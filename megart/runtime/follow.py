"""Follow-up questions: when a question leans on what was said before, and on what.

What an earlier answer said stands in the memory that it came from: by that its subject is known again, whatever the
question had opened. Where no memory holds what was answered, the rule is this. A question leans on the conversation
when it has a word that points back (she, it, their, there, ...), begins with one that goes on (and, but, so, ...), or
says almost nothing by itself ("Why?"). Then its subject is that of the last question of the user that stood on its own:
what that question opens stays open. A question that names something closes it again, unless the open memory holds the
name; so does one that points back only by a word like "it" or "that" and says more than one thing, none of which is in
the open memory ("Does it rain when clouds meet?"). "There is" points at nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .. import gate
from ..bank import Record
from ..gate.languages import function_words, language
from ..gate.words import WORD, fold

# An answer of fewer characters may stand in any memory.
_TELLING_ANSWER = 12
# Words that go on with what was said, where they come first. Folded, as all words here are.
_GOES_ON = frozenset(
    "and but so also or then plus und aber oder dann et mais alors y pero entonces e ed ma allora maar dus och eller ale "
    "а и но".split()
)
# In one language only, see gate.languages; "en" begins a whole question in Spanish and French.
_GOES_ON_IN = {"Dutch": frozenset(["en"])}


def _by_language(words: Mapping[str, str]) -> dict[str, frozenset[str]]:
    return {name: frozenset(listed.split()) for name, listed in words.items()}


# Words that stand for somebody, and words that stand for a thing, but may also stand for nothing said
# before ("it rains", "is it true that", "there are").
_PERSONS = _by_language({
    "English": "he she they him her them his hers their theirs himself herself themselves",
    "German": "er ihn ihm ihr ihre ihrem ihren ihrer ihres seine seinem seinen seiner seines",
    "French": "elle elles eux lui leur leurs son sa ses",
    "Spanish": "ella ellos ellas su sus", "Italian": "lui lei loro suo sua suoi sue",
    "Portuguese": "ele ela eles elas dele dela deles delas seu sua seus suas", "Dutch": "hij zij haar hem hun",
    "Swedish": "han hon honom henne hans hennes dem deras", "Polish": "on ona oni jego jej ich",
    "Russian": "он она они его ее их ему ей им него нее них",
})  # fmt: skip
_THINGS = _by_language({
    "English": "it its itself this that these those there then same", "German": "es sie dort davon dazu damit dafur",
    "French": "il ils cela ca ceci", "Spanish": "esto eso ello alli ahi", "Italian": "questo quello cio li",
    "Portuguese": "isso isto aquilo", "Dutch": "dit daar ervan ervoor", "Swedish": "detta dar", "Russian": "это там туда",
})  # fmt: skip
# A question of fewer telling words than this stands on nothing.
_TELLING = 2
_TURNS = 8
# Words by which a question is the bank's own matter even where the gate finds nothing.
_OWN = frozenset(
    "my mine our ours i've we've mein meine meinen meinem meiner unser unsere mon notre nos mio miei mie nostro nostra "
    "meu minha nosso nossa mijn onze".split()
)
# What one asks of a person: of somebody that is named, no model can know it.
_PRIVATE = frozenset(
    "phone telephone mobile number birthday address email e-mail mail live lives telefon telefonnummer nummer handynummer "
    "geburtstag adresse mailadresse wohnt numero anniversaire habite telefono correo cumpleanos direccion vive compleanno "
    "indirizzo abita telefone morada aniversario mora telefoonnummer verjaardag adres woont fodelsedag adress bor urodziny "
    "numer mieszka телефон номер адрес рождения живет".split()
)
_BEFORE = frozenset(
    "before earlier previously previous formerly former until originally fruher vorher bisher zuvor bislang davor avant "
    "auparavant precedemment antes anterior prima precedente eerder vroeger voorheen tidigare раньше прежде antigamente "
    "ursprunglich originalmente originariamente oorspronkelijk первоначально".split()
)
# Of these those that also begin a clause ("before I leave") or compare ("who was born earlier, A or B").
_JOINS = frozenset("before earlier until avant antes prima".split())
# Words by which a question is one of the past: auxiliaries, and verbs with the ending of the imperfect.
_PAST = re.compile(
    r"was|wasn|were|weren|did|didn|had|hadn|used|went|came|took|era|eran|erano|eram|fue|foi|tenia|habia|tinha|havia|"
    r"[^\W\d]{2,}(?:aba|aban|ait|aient|ava|avam|avano|eva|evano)"
)
_BEST_BEFORE = re.compile(r"\bbest before\b")  # the date on a label
# After "until" or "before": a question for a time, or for what else comes first ("until when", "before which day").
_FOR_A_TIME = frozenset("when what which where how qual quando cuando quelle quel quoi".split())
_ELLIPSIS = 4  # words of a question at most that may do without a verb ("And before the move?")
_OPENER = re.compile(
    r"\s*(?:(?:by the way|btw|something else|one (?:more|other) (?:thing|question)|another (?:thing|question)|"
    r"(?:a )?different question|next question|ok(?:ay)?|thanks?(?: you)?|great|übrigens|noch etwas|andere frage|au fait|"
    r"autre chose|por cierto|otra cosa|a proposito|trouwens)[,:.!–-]+\s*)+",
    re.IGNORECASE,
)
_USED = frozenset(["used"])
_NOTED = re.compile(r"\(noted \d{4}-\d\d-\d\d\)\s*$")  # that an answer adds to what its memory says, see ask.said
_OWN_DOINGS = frozenset((verb, who) for verb in ("did", "have", "had", "was", "were") for who in ("i", "we"))
_THERE_IS = re.compile(r"\b(?:is|are|was|were|be|been|isn't|aren't) there\b|\bthere(?:'s| is| are| was| were| be)\b")


@dataclass(frozen=True)
class _Pointing:
    """The words of a question that point back, folded, and those that say nothing in its language.

    ``goes_on``: it begins with a word that goes on.
    """

    goes_on: bool
    empty: frozenset[str]
    persons: frozenset[str]
    things: frozenset[str]


def _pointing(question: gate.QuestionWords, before: str) -> _Pointing:
    words = _words(question)
    spoken = language(words)
    if spoken == "English" and function_words("English").isdisjoint(words):  # too short to tell: "ihre Nummer?"
        spoken = language([fold(word) for word in WORD.findall(before)])
    first = words[0] if words else ""
    goes_on = first in _GOES_ON or first in _GOES_ON_IN.get(spoken, ())
    persons, things = (by.get(spoken, frozenset()).intersection(words) for by in (_PERSONS, _THINGS))
    return _Pointing(goes_on, function_words(spoken), persons, things)


def is_follow_up(question: gate.QuestionWords, before: str = "") -> bool:
    """Does *question* lean on what was said *before* it? By that its language is known where it is too short."""
    pointing = _pointing(question, before)
    if not question.words or pointing.goes_on or pointing.persons:
        return True
    things = pointing.things
    if "there" in things and _THERE_IS.search(" ".join(question.words).lower()):
        things -= {"there"}
    return bool(things) or (not question.names and len(telling_words(question, before)) < _TELLING)


def points_weakly(question: gate.QuestionWords, before: str = "") -> bool:
    """Does *question* lean on what was said by words only that may also point at nothing?"""
    pointing = _pointing(question, before)
    return bool(question.words) and not pointing.goes_on and not pointing.persons


def telling_words(question: gate.QuestionWords, before: str = "") -> list[int]:
    """Which words of *question* say something, and do not only make it a question or point back."""
    pointing = _pointing(question, before)
    empty = pointing.persons | pointing.things | pointing.empty
    return [i for i, word in enumerate(_words(question)) if not question.asking[i] and word not in empty]


def _words(question: gate.QuestionWords) -> list[str]:
    """The words, folded, without what stands after an apostrophe."""
    return [fold(word).split("'")[0] for word in question.words]


def anchor(history: Sequence[Mapping[str, str]], prior: Callable[[str], float]) -> str | None:
    """The last question of the user in *history* that stood on its own."""
    before = asked(history)
    for text in reversed(before):
        if not is_follow_up(gate.read_question(text, prior), "\n".join(before)):
            return text
    return None


def asked(history: Sequence[Mapping[str, str]]) -> list[str]:
    """The last questions of the user in *history*."""
    questions = [turn["content"] for turn in history if turn.get("role") == "user" and turn.get("content", "").strip()]
    return questions[-_TURNS:]


def without_opener(question: str) -> str:
    """*question* without words that only change the subject ("By the way, ..."), where a whole question is left."""
    rest = _OPENER.sub("", question, count=1).strip()
    return rest[0].upper() + rest[1:] if len(rest.split()) >= 3 and rest != question.strip() else question


def asks_before(question: str) -> bool:
    """Whether *question* is about how something was before it changed."""
    words = [part for word in WORD.findall(question) for part in fold(word).split("'")]
    words = _BEST_BEFORE.sub("", " ".join(words)).split()
    pairs = list(zip(words, [*words[1:], ""]))
    if any(word in _USED and after == "to" for word, after in pairs):
        return True
    said = [pair for pair in pairs if pair[0] in _BEFORE]
    past = len(words) <= _ELLIPSIS or any(map(_PAST.fullmatch, words))
    return any(word not in _JOINS or _says_before(word, after, past=past) for word, after in said)


def _says_before(word: str, after: str, *, past: bool) -> bool:
    """Whether one of ``_JOINS``, which *after* follows ("": nothing), says how it was, in a question that is of the *past*."""
    if not after:
        return word != "until"
    return past and after not in _FOR_A_TIME


def without_before(question: str, text: str) -> str:
    """*question* as of now, for a *text* that says of itself nothing like it: "What did it cost before?" without "before"."""
    if not asks_before(question) or asks_before(text):
        return question
    words = list(WORD.finditer(question))
    kept, at = [], 0
    for place, word in enumerate(words):
        name = fold(word[0])
        if name in _BEFORE and (name not in _JOINS or place == len(words) - 1):
            kept.append(question[at : word.start()].rstrip())
            at = word.end()
    return "".join([*kept, question[at:]])


def asked_again(question: str, history: Sequence[Mapping[str, str]], prior: Callable[[str], float]) -> str | None:
    """The earlier question that *question* asks again of the time before ("What was it before?"); None where it does not."""
    if not asks_before(question) or (earlier := anchor(history, prior)) is None:
        return None
    read = gate.read_question(question, prior)
    words = _words(read)
    says = {words[i] for i in telling_words(read, "\n".join(asked(history)))}
    return f"{earlier.rstrip(' ?')} before?" if says <= _BEFORE | _GOES_ON else None


def sources(answer: str, records: Sequence[Record]) -> list[int]:
    """Which of *records* hold what *answer* says, word for word, a line at a time; none for a very short answer."""
    plain = (_NOTED.sub("", line).strip() for line in answer.splitlines())
    lines = [line for line in plain if len(line) >= _TELLING_ANSWER]
    return [i for i, record in enumerate(records) if any(line in record.text for line in lines)] if lines else []


def is_private(question: str) -> bool:
    """Whether *question* is about the bank's owner, or how to reach somebody: one for the bank, even where the gate
    finds nothing.
    """
    written = WORD.findall(question)
    words = [fold(word).replace("’", "'") for word in written]
    pairs = set(zip(words, words[1:]))
    somebody = any(word[0].isupper() and (place or _possessive(word)) for place, word in enumerate(written))
    return (
        not _OWN.isdisjoint(words)
        or not _OWN_DOINGS.isdisjoint(pairs)
        or (somebody and not _PRIVATE.isdisjoint(words))
    )


def _possessive(word: str) -> bool:
    return word.replace("’", "'").endswith(("'s", "s'"))
