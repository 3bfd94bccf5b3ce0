"""Recall, then read: the way of a question.

The gate ranks the memories that the question may be about. The likeliest recites its text, the reader answers from it
by a span, and one probability, of all that was seen, says whether that is an answer; if it is none, the next memory
recites, two at most. What the user gets is the sentence that the span stands in: words that a memory recited, with the
memory as their source. Where none answers, the bare base speaks, and the answer says that nothing is known.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .. import gate, sentences
from ..bank import Record
from ..errors import InputError
from ..gate.words import WORD, fold
from .answer import Answer, OpenedMemory, Source, Timings
from .clauses import bridge, clauses
from .compare import Value, comparison
from .context import DecodeError
from .opening import Candidate, Found
from .reader import NOTHING_READ, Reading
from .recite import Recital, of_text
from .sampling import Options
from .worker import Stream

if TYPE_CHECKING:
    from .respond import Question, Responder

#: The forms of an answer: the fewest words, the sentence that they stand in, or all that was recited.
STYLES = ("short", "sentence", "passage")
STYLE = "sentence"
NOT_KNOWN = "Not in memory."
MOST_TOKENS = 4096  # of an answer that was read, unless the user says fewer
# In the bank: b"1" where it says nothing else when nothing is known.
STRICT_STATE = "strict"
# Words by which a question is the bank's own matter even where the gate finds nothing.
_OWN = frozenset(
    "my mine our ours i've we've mein meine meinen meinem meiner unser unsere mon notre nos mio miei mie nostro nostra "
    "meu minha nosso nossa mijn onze".split()
)
_OWN_DOINGS = frozenset((verb, who) for verb in ("did", "have", "had", "was", "were") for who in ("i", "we"))


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
    """What came of one *question*: what the gate found, what was read, and which of that answers, best first.

    ``through``: what was read to know what the question is about.
    """

    question: str
    found: Found
    tried: list[Tried]
    answering: list[Tried]
    through: tuple[Tried, ...] = ()

    @property
    def turns(self) -> list[dict[str, str]]:
        """The question and its answer as turns of a conversation."""
        texts = [said(one.source, STYLE) for one in self.answering]
        return [{"role": "user", "content": self.question}, {"role": "assistant", "content": "\n".join(texts)}]

    @property
    def known(self) -> bool | None:
        """True, or False where the question is one for the bank, or None where it is a general one."""
        return True if self.answering else False if self.tried or is_own(self.question) else None


def is_own(question: str) -> bool:
    """Whether *question* is about the bank's owner: one for the bank, even where the gate finds nothing."""
    words = [fold(word).replace("’", "'") for word in WORD.findall(question)]
    pairs = set(zip(words, words[1:]))
    return not _OWN.isdisjoint(words) or not _OWN_DOINGS.isdisjoint(pairs)


def ask(responder: Responder, asked: Question, stream: Stream[Answer]) -> Answer:
    """The answer to *asked*; its text goes to *stream* as soon as it is known."""
    started = time.perf_counter()
    clock = _Clock()
    outcomes: list[Outcome] = []
    for clause in clauses(asked.question):
        if stream.is_cancelled:
            break
        history = [*asked.history, *(turn for outcome in outcomes for turn in outcome.turns)]
        outcomes.append(_outcome(responder, replace(asked, question=clause, history=history), clock, stream))
    if stream.is_cancelled:
        return Answer("", "ask", timings=clock.times, finish="cancelled", style=asked.style)
    answering = [one for outcome in outcomes for one in outcome.answering]
    compared = _compared(responder, asked, outcomes[0])
    if asked.options.gbnf is not None and answering:
        made = _bound(responder, asked, answering, stream)
    elif compared is not None and asked.options.gbnf is None:
        made = _compared_answer(responder, asked, *compared, stream)
    elif answering:
        made = _read_answer(responder, asked, outcomes, stream)
    else:
        made = _not_known(responder, asked, outcomes, stream)
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


def _outcome(
    responder: Responder, asked: Question, clock: _Clock, stream: Stream[Answer], *, bridged: bool = False
) -> Outcome:
    """Find, recall and read for one question; where nothing answers one that is about what another finds, in two steps."""
    found, spent = responder.find(responder.prompt(*asked.worded(), asked.history), asked)
    clock.add(embed_ms=spent.embed_ms, gate_ms=spent.gate_ms)
    by_hand = bool(asked.scope.gates)
    every = by_hand or found.pair or comparison(asked.question) is not None
    tried: list[Tried] = []
    # Half of a question is often told by few words: its nearest memories are read however unlikely.
    for candidate in found.candidates[: gate.known.MOST] if found.likely or bridged else ():
        if stream.is_cancelled:
            break
        tried.append(_try(responder, candidate, asked, found, clock, stream))
        if tried[-1].p >= gate.known.THRESHOLD and not every:
            break
    if by_hand:  # what is opened by hand answers: the memory that the reader finds most in, first
        tried.sort(key=lambda one: -one.reading.odds)
        tried = tried[:1] + [one for one in tried[1:] if one.reading.odds > 0]
    answering = [one for one in tried if one.p >= gate.known.THRESHOLD]
    steps = None if answering or bridged else bridge(asked.question)
    if steps is not None:
        first = _outcome(responder, replace(asked, question=steps[0]), clock, stream, bridged=True)
        words = first.answering[0].source.words if first.answering else ""
        if words and words.lower() not in asked.question.lower():
            second = replace(asked, question=f"{steps[1]}{words}?")
            outcome = _outcome(responder, second, clock, stream, bridged=True)
            if outcome.answering:
                return replace(outcome, question=asked.question, through=(first.answering[0],))
    return Outcome(asked.question, found, tried, answering)


def _try(
    responder: Responder, candidate: Candidate, asked: Question, found: Found, clock: _Clock, stream: Stream[Answer]
) -> Tried:
    """*candidate* recited and read; what does not fit into the reader's context does not answer."""
    started = recited = time.perf_counter()
    reader = responder.reader
    recital, reading = of_text(responder.engine, ""), NOTHING_READ
    try:
        recital = _hold(responder, candidate.record, lambda: stream.is_cancelled)
        recited = time.perf_counter()
        question = f"{found.earlier} {asked.question}" if found.earlier else asked.question
        reading = reader.read(recital, question, candidate.record.title)
    except DecodeError:
        reader.context.truncate(0)
    values = gate.known.features(candidate.odds, reading.odds, reading.logprob, candidate.about)
    if reading.span[0] == reading.span[1]:
        p = 0.0
    elif asked.scope.gates:
        p = 1.0
    else:
        p = gate.known.probability(values) if reader.trained else float(found.opens)
    clock.add(recall_ms=(recited - started) * 1000, read_ms=(time.perf_counter() - recited) * 1000)
    return Tried(candidate, recital, reading, values, p)


def _hold(responder: Responder, record: Record, cancelled: Callable[[], bool] = lambda: False) -> Recital:
    """Make the reader's context hold the recital of *record*."""
    return responder.reader.hold(_name(record), lambda into: responder.recite(record, into, cancelled))


def _name(record: Record) -> tuple[str, str]:
    """By what a recital is known again."""
    return (record.adapter_sha256 or "pending", record.text)


Made = tuple[Answer, float]  # an answer without its times, and when its first token was there


def _read_answer(responder: Responder, asked: Question, outcomes: list[Outcome], stream: Stream[Answer]) -> Made:
    """What the sources say; of two questions in one, also which is not known."""
    lines: list[str] = []
    for outcome in outcomes:
        lines += [said(one.source, asked.style) for one in outcome.answering]
        if not outcome.answering:
            lines.append(f"{NOT_KNOWN.rstrip('.')}: {outcome.question}")
    answering = [one for outcome in outcomes for one in (*outcome.answering, *outcome.through)]
    return _put(responder, asked, "\n".join(dict.fromkeys(lines)), answering, stream)


def _put(responder: Responder, asked: Question, text: str, sources: list[Tried], stream: Stream[Answer]) -> Made:
    """*text*, all of it words of the *sources*, as the answer."""
    made = responder.put(text, _whole(asked), stream)
    answer = Answer(
        made.text, "ask", _opened(sources), Timings(), made.tokens, made.finish,
        known=True, grounded=True, sources=_sources(sources),
    )  # fmt: skip
    return answer, made.first_token


def _whole(asked: Question) -> Options:
    """The options of *asked*; what was read is cut only where the user says so."""
    return asked.options if asked.limited else replace(asked.options, max_tokens=MOST_TOKENS)


def _sources(answering: list[Tried]) -> list[Source]:
    """Each once."""
    return list(dict.fromkeys(one.source for one in answering))


def _compared(responder: Responder, asked: Question, outcome: Outcome) -> tuple[str, list[Tried]] | None:
    """Which of two things the question asks for, and the memories that say so, the winner's first; None: it asks not."""
    compare = comparison(asked.question)
    if compare is None or len(outcome.tried) != 2:
        return None
    named = [compare.is_named(option, one.recital.text) for option in (0, 1) for one in outcome.tried]
    if not outcome.found.opens and not (any(named[:2]) and any(named[2:])):
        return None  # about other things than the memories are
    found: dict[int, tuple[Value, Tried]] = {}
    for one in outcome.tried:
        record = one.candidate.record
        option = compare.option_of(f"{record.title or ''} {one.recital.text}")
        values = compare.values(one.recital.text)
        if option is None or option in found or not values:
            return None
        _hold(responder, record)
        place = responder.reader.choose(one.recital, asked.question, record.title, [value.span for value in values])
        value = values[place]
        found[option] = value, replace(one, reading=replace(one.reading, span=value.span))
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
        sources=_sources(answering),
    )  # fmt: skip
    return answer, made.first_token


def _not_known(responder: Responder, asked: Question, outcomes: list[Outcome], stream: Stream[Answer]) -> Made:
    """Nothing answers: the bare base does, unless the bank is strict."""
    known = False if any(outcome.known is False for outcome in outcomes) else None
    nearest = list(dict.fromkeys(title for o in outcomes for title in o.found.titles)) if known is False else []
    if asked.on_known is not None:
        asked.on_known(known, nearest)
    if asked.strict and known is False:
        made = responder.put(NOT_KNOWN, _whole(asked), stream)
    else:
        made = responder.plain(responder.prompt(*asked.worded(), asked.history), asked, stream)
    answer = Answer(
        made.text, "ask", [], Timings(prompt_tokens=made.prompt_tokens), made.tokens, made.finish,
        known=known, nearest=nearest,
    )  # fmt: skip
    return answer, made.first_token


def _opened(answering: list[Tried]) -> list[OpenedMemory]:
    """The memories that answer, each once; their weights sum to 1."""
    best: dict[str, Tried] = {}
    for one in answering:
        best.setdefault(one.candidate.record.id, one)
    total = sum(one.p for one in best.values())
    records = [one.candidate.record for one in best.values()]
    return [
        OpenedMemory(r.id, r.title or r.id, one.p / total, r.state == "pending")
        for r, one in zip(records, best.values(), strict=True)
    ]
