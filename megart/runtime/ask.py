"""Recall, then read: the way of a question.

The gate ranks the memories that the question may be about. The likeliest recites its text, the reader answers from it
by a span, and one probability, of all that was seen, says whether that is an answer; if it is none, the next memory
recites, two at most. What the user gets is the sentence that the span stands in: words that a memory recited, with the
memory as their source. Where none answers, the bare base speaks, and the answer says that nothing is known.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .. import gate, sentences
from ..bank import Record
from ..errors import InputError
from .answer import Answer, OpenedMemory, Source, Timings
from .clauses import bridge, clauses
from .compare import comparison
from .opening import Candidate, Found
from .reader import Reading
from .recite import Recital
from .worker import Stream

if TYPE_CHECKING:
    from .respond import Question, Responder

#: The forms of an answer: the fewest words, the sentence that they stand in, or all that was recited.
STYLES = ("short", "sentence", "passage")
STYLE = "sentence"
NOT_KNOWN = "Not in memory."
# In the bank: b"1" where it says nothing else when nothing is known.
STRICT_STATE = "strict"
# Words by which a question is the bank's own matter even where the gate finds nothing.
_OWN = frozenset("my mine our ours i we mein meine meinen meinem meiner mon ma mes mi mis mio mia miei mie meu minha mijn".split())


@dataclass(frozen=True)
class Tried:
    """A candidate that was read: what it recited, the reader's answer, and the probability that it is one.

    ``values``: the features of that probability, see ``gate.known.features``.
    """

    candidate: Candidate
    recital: Recital
    reading: Reading
    values: list[float]
    p: float

    @property
    def source(self) -> Source:
        record = self.candidate.record
        return Source(record.id, record.title or record.id, self.recital.text, self.reading.span)


def check_style(style: str) -> str:
    if style not in STYLES:
        raise InputError(f"got the style {style!r}; expected one of {', '.join(STYLES)}")
    return style


@dataclass(frozen=True)
class Outcome:
    """What came of one question: what the gate found, what was read, and which of that answers, best first."""

    found: Found
    tried: list[Tried]
    answering: list[Tried]


def ask(responder: Responder, asked: Question, stream: Stream[Answer]) -> Answer:
    """The answer to *asked*; its text goes to *stream* as soon as it is known."""
    started = time.perf_counter()
    clock = _Clock()
    outcomes: list[Outcome] = []
    for clause in clauses(asked.question):
        if stream.is_cancelled:
            break
        outcomes.append(_outcome(responder, replace(asked, question=clause), clock))
    if stream.is_cancelled:
        return Answer("", "ask", timings=clock.times, finish="cancelled", style=asked.style)
    answering = [one for outcome in outcomes for one in outcome.answering]
    compared = _compared(responder, asked, outcomes[0].tried)
    if asked.options.gbnf is not None and answering:
        made = _bound(responder, asked, answering, stream)
    elif compared is not None:
        made = _compared_answer(responder, asked, *compared, stream)
    elif answering:
        made = _read_answer(responder, asked, answering, stream)
    else:
        made = _not_known(responder, asked, outcomes[0], stream)
    answer, first_token = made
    times = replace(
        clock.times,
        first_token_ms=(first_token - started) * 1000,
        total_ms=(time.perf_counter() - started) * 1000,
        prompt_tokens=answer.timings.prompt_tokens,
        completion_tokens=len(answer.tokens),
    )
    return replace(answer, timings=times, style=asked.style)


class _Clock:
    """The milliseconds of each stage, of all questions and memories together."""

    def __init__(self) -> None:
        self.times = Timings()

    def add(self, **spent: float) -> None:
        self.times = replace(self.times, **{name: getattr(self.times, name) + ms for name, ms in spent.items()})


def _outcome(responder: Responder, asked: Question, clock: _Clock, *, bridged: bool = False) -> Outcome:
    """Find, recall and read for one question; where it is about what another finds, that one first."""
    steps = None if bridged else bridge(asked.question)
    if steps is not None:
        first = _outcome(responder, replace(asked, question=steps[0]), clock, bridged=True)
        if first.answering:
            named = f"{steps[1]}{first.answering[0].source.words}?"
            second = _outcome(responder, replace(asked, question=named), clock, bridged=True)
            if second.answering:
                return replace(second, answering=[*second.answering, *first.answering])
    found, spent = responder.find(responder.prompt(*asked.worded(), asked.history), asked)
    clock.add(embed_ms=spent.embed_ms, gate_ms=spent.gate_ms)
    tried: list[Tried] = []
    both = found.pair or comparison(asked.question) is not None
    for candidate in found.candidates if found.likely else ():
        tried.append(_try(responder, candidate, asked, found, clock))
        if tried[-1].p >= gate.known.THRESHOLD and not both:
            break
    return Outcome(found, tried, [one for one in tried if one.p >= gate.known.THRESHOLD])


def _try(responder: Responder, candidate: Candidate, asked: Question, found: Found, clock: _Clock) -> Tried:
    """*candidate* recited and read."""
    started = time.perf_counter()
    reader = responder.reader
    recital = reader.hold(_name(candidate.record), lambda context: responder.recite(candidate.record, context))
    recited = time.perf_counter()
    question = f"{found.earlier} {asked.question}" if found.earlier else asked.question
    reading = reader.read(recital, question, candidate.record.title)
    values = gate.known.features(candidate.odds, reading.odds, reading.logprob, candidate.about)
    p = gate.known.probability(values) if reader.trained and not asked.scope.gates else 1.0
    clock.add(recall_ms=(recited - started) * 1000, read_ms=(time.perf_counter() - recited) * 1000)
    return Tried(candidate, recital, reading, values, p)


def _name(record: Record) -> tuple[str, str]:
    """By what a recital is known again."""
    return (record.adapter_sha256 or "pending", record.text)


Made = tuple[Answer, float]  # an answer without its times, and when its first token was there


def _read_answer(responder: Responder, asked: Question, answering: list[Tried], stream: Stream[Answer]) -> Made:
    text = "\n".join(dict.fromkeys(said(one.source, asked.style) for one in answering))
    return _put(responder, asked, text, answering, stream)


def _put(responder: Responder, asked: Question, text: str, sources: list[Tried], stream: Stream[Answer]) -> Made:
    """*text*, all of it words of the *sources*, as the answer."""
    made = responder.put(text, asked.options, stream)
    answer = Answer(
        made.text, "ask", _opened(sources), Timings(), made.tokens, made.finish,
        known=True, grounded=True, sources=[one.source for one in sources],
    )  # fmt: skip
    return answer, made.first_token


def _compared(responder: Responder, asked: Question, tried: list[Tried]) -> tuple[str, list[Tried]] | None:
    """Which of two things the question asks for, and the memories that say so, the winner's first; None: it asks not."""
    compare = comparison(asked.question)
    if compare is None or len(tried) < 2:
        return None
    found: dict[int, tuple[float, Tried]] = {}
    for one in tried:
        record = one.candidate.record
        option = compare.option_of(f"{record.title or ''} {one.recital.text}")
        values = compare.values(one.recital.text)
        if option is None or option in found or not values:
            return None
        reader = responder.reader
        reader.hold(_name(record), lambda context: responder.recite(record, context))  # noqa: B023  called at once
        place = reader.choose(one.recital, asked.question, record.title, [span for span, _ in values])
        span, value = values[place]
        found[option] = value, replace(one, reading=replace(one.reading, span=span))
    best = compare.best((found[0][0], found[1][0]))
    return None if best is None else (compare.options[best], [found[best][1], found[1 - best][1]])


def _compared_answer(
    responder: Responder, asked: Question, winner: str, both: list[Tried], stream: Stream[Answer]
) -> Made:
    """The thing that was asked for, and both figures."""
    sources = [one.source for one in both]
    text = {
        "short": winner,
        "sentence": f"{winner[0].upper()}{winner[1:]} ({sources[0].words}, against {sources[1].words}).",
        "passage": "\n".join(source.text for source in sources),
    }[asked.style]
    return _put(responder, asked, text, both, stream)


def said(source: Source, style: str) -> str:
    """The answer in *source* in the form *style*; white space at line ends is folded."""
    if style == "passage":
        return source.text
    if style == "short":
        return " ".join(source.words.split()) or source.text
    start, end = sentences.holding(source.text, *source.span)
    return source.text[start:end]


def _bound(responder: Responder, asked: Question, answering: list[Tried], stream: Stream[Answer]) -> Made:
    """An answer in the form that a grammar gives it: by the bare base, the recited texts in its prompt."""
    texts = [one.recital.text for one in answering]
    made = responder.from_text(texts, asked, stream)
    answer = Answer(
        made.text, "ask", _opened(answering), Timings(prompt_tokens=made.prompt_tokens), made.tokens, made.finish,
        known=True, grounded=gate.known.grounded(made.text, [*texts, asked.question]),
        sources=[one.source for one in answering],
    )  # fmt: skip
    return answer, made.first_token


def _not_known(responder: Responder, asked: Question, outcome: Outcome, stream: Stream[Answer]) -> Made:
    """Nothing answers: the bare base does, unless the bank is strict."""
    own = not _OWN.isdisjoint(asked.question.lower().replace("'", " ").split())
    known = False if outcome.tried or (own and outcome.found.candidates) else None
    nearest = outcome.found.titles if known is False else []
    if asked.on_known is not None:
        asked.on_known(known, nearest)
    if asked.strict and known is False:
        made = responder.put(NOT_KNOWN, asked.options, stream)
    else:
        made = responder.plain(responder.prompt(*asked.worded(), asked.history), asked, stream)
    answer = Answer(
        made.text, "ask", [], Timings(prompt_tokens=made.prompt_tokens), made.tokens, made.finish,
        known=known, nearest=nearest,
    )  # fmt: skip
    return answer, made.first_token


def _opened(answering: list[Tried]) -> list[OpenedMemory]:
    total = sum(one.p for one in answering)
    return [
        OpenedMemory(r.id, r.title or r.id, one.p / total, r.state == "pending")
        for one in answering
        for r in (one.candidate.record,)
    ]
