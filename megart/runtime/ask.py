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
_OWN = frozenset("my mine our ours i we me us".split())


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


def ask(responder: Responder, asked: Question, stream: Stream[Answer]) -> Answer:
    """The answer to *asked*; its text goes to *stream* as soon as it is known."""
    started = time.perf_counter()
    prompt = responder.prompt(*asked.worded(), asked.history)
    found, times = responder.find(prompt, asked)
    tried: list[Tried] = []
    compares = comparison(asked.question) is not None
    if found.likely:
        for candidate in found.candidates:
            if stream.is_cancelled:
                return Answer("", "ask", timings=times, finish="cancelled", style=asked.style)
            one, recall_ms, read_ms = _try(responder, candidate, asked, found)
            tried.append(one)
            times = replace(times, recall_ms=times.recall_ms + recall_ms, read_ms=times.read_ms + read_ms)
            if one.p >= gate.known.THRESHOLD and not found.pair and not compares:
                break
    compared = _compared(responder, asked, tried)
    if compared is not None and asked.options.gbnf is None:
        return _compared_answer(responder, asked, *compared, times, stream, started)
    answering = [one for one in tried if one.p >= gate.known.THRESHOLD]
    if answering and asked.options.gbnf is not None:
        return _bound(responder, asked, answering, times, stream, started)
    if answering:
        return _read_answer(responder, asked, answering, times, stream, started)
    return _not_known(responder, asked, found, tried, times, stream, started)


def _try(responder: Responder, candidate: Candidate, asked: Question, found: Found) -> tuple[Tried, float, float]:
    """*candidate* recited and read; the milliseconds of each."""
    started = time.perf_counter()
    reader = responder.reader
    recital = reader.hold(_name(candidate.record), lambda context: responder.recite(candidate.record, context))
    recited = time.perf_counter()
    question = f"{found.earlier} {asked.question}" if found.earlier else asked.question
    reading = reader.read(recital, question, candidate.record.title)
    values = gate.known.features(candidate.odds, reading.odds, reading.logprob, candidate.about)
    p = gate.known.probability(values) if reader.trained and not asked.scope.gates else 1.0
    done = time.perf_counter()
    return Tried(candidate, recital, reading, values, p), (recited - started) * 1000, (done - recited) * 1000


def _name(record: Record) -> tuple[str, str]:
    """By what a recital is known again."""
    return (record.adapter_sha256 or "pending", record.text)


def _read_answer(
    responder: Responder,
    asked: Question,
    answering: list[Tried],
    times: Timings,
    stream: Stream[Answer],
    started: float,
) -> Answer:
    text = "\n".join(dict.fromkeys(said(one.source, asked.style) for one in answering))
    made = responder.put(text, asked.options, stream)
    times = _ended(times, started, made.first_token, len(made.tokens))
    return Answer(
        made.text, "ask", _opened(answering), times, made.tokens, made.finish,
        known=True, grounded=True, sources=[one.source for one in answering], style=asked.style,
    )  # fmt: skip


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
        reader.hold(_name(record), lambda context: responder.recite(record, context))
        place = reader.choose(one.recital, asked.question, record.title, [span for span, _ in values])
        span, value = values[place]
        found[option] = value, replace(one, reading=replace(one.reading, span=span))
    best = compare.best((found[0][0], found[1][0]))
    return None if best is None else (compare.options[best], [found[best][1], found[1 - best][1]])


def _compared_answer(
    responder: Responder,
    asked: Question,
    winner: str,
    both: list[Tried],
    times: Timings,
    stream: Stream[Answer],
    started: float,
) -> Answer:
    """The thing that was asked for, and both figures."""
    sources = [one.source for one in both]
    text = {
        "short": winner,
        "sentence": f"{winner[0].upper()}{winner[1:]} ({sources[0].words}, against {sources[1].words}).",
        "passage": "\n".join(source.text for source in sources),
    }[asked.style]
    made = responder.put(text, asked.options, stream)
    times = _ended(times, started, made.first_token, len(made.tokens))
    return Answer(
        made.text, "ask", _opened(both), times, made.tokens, made.finish,
        known=True, grounded=True, sources=sources, style=asked.style,
    )  # fmt: skip


def said(source: Source, style: str) -> str:
    """The answer in *source* in the form *style*; white space at line ends is folded."""
    if style == "passage":
        return source.text
    if style == "short":
        return " ".join(source.words.split()) or source.text
    start, end = sentences.holding(source.text, *source.span)
    return source.text[start:end]


def _bound(
    responder: Responder,
    asked: Question,
    answering: list[Tried],
    times: Timings,
    stream: Stream[Answer],
    started: float,
) -> Answer:
    """An answer in the form that a grammar gives it: by the bare base, the recited texts in its prompt."""
    texts = [one.recital.text for one in answering]
    made = responder.from_text(texts, asked, stream)
    sources = [one.source for one in answering]
    times = _ended(times, started, made.first_token, len(made.tokens))
    return Answer(
        made.text, "ask", _opened(answering), times, made.tokens, made.finish,
        known=True, grounded=gate.known.grounded(made.text, [*texts, asked.question]), sources=sources,
        style=asked.style,
    )  # fmt: skip


def _not_known(
    responder: Responder,
    asked: Question,
    found: Found,
    tried: list[Tried],
    times: Timings,
    stream: Stream[Answer],
    started: float,
) -> Answer:
    """Nothing answers: the bare base does, unless the bank is strict."""
    own = not _OWN.isdisjoint(asked.question.lower().replace("'", " ").split())
    known = False if tried or (own and found.candidates) else None
    nearest = found.titles if known is False else []
    if asked.on_known is not None:
        asked.on_known(known, nearest)
    if asked.strict and known is False:
        made = responder.put(NOT_KNOWN, asked.options, stream)
    else:
        made = responder.plain(responder.prompt(*asked.worded(), asked.history), asked, stream)
    times = replace(_ended(times, started, made.first_token, len(made.tokens)), prompt_tokens=made.prompt_tokens)
    return Answer(
        made.text, "ask", [], times, made.tokens, made.finish, known=known, style=asked.style, nearest=nearest
    )  # fmt: skip


def _opened(answering: list[Tried]) -> list[OpenedMemory]:
    total = sum(one.p for one in answering)
    return [
        OpenedMemory(r.id, r.title or r.id, one.p / total, r.state == "pending")
        for one in answering
        for r in (one.candidate.record,)
    ]


def _ended(times: Timings, started: float, first: float, tokens: int) -> Timings:
    now = time.perf_counter()
    return replace(
        times, first_token_ms=(first - started) * 1000, total_ms=(now - started) * 1000, completion_tokens=tokens
    )
