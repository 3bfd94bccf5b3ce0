"""Recall, then read: the way of a question.

The gate ranks the memories that the question may be about. The likeliest recites its text, the reader answers from it
by a span, and one probability, of all that was seen, says whether that is an answer; if it is none, or not a sure one,
the next memory recites, two at most, and the likelier answers. What the user gets is the sentence that the span stands
in: words that a memory recited, with the memory as their source. Where none answers, the bare base speaks, and the
answer says that nothing is known.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace

from .. import gate, sentences
from .answer import Answer, OpenedMemory, Source, Timings
from .clauses import clauses, halves
from .compare import Comparison, comparison
from .context import DecodeError
from .follow import asked_again, is_private, without_before, without_opener
from .found import Candidate, Found
from .job import Job
from .newest import newest
from .reader import NOTHING_READ, Reading
from .recall import recall
from .recite import Recital, of_text
from .reckon import reckon
from .request import STYLE
from .runtime import ms
from .sampling import SamplingOptions
from .shaped import shaped
from .steps import Steps, steps
from .terse import short, terse

NOT_KNOWN = "Not in memory."
MOST_TOKENS = 4096  # of an answer that was read, unless the user says fewer
# Where an item of a list begins; an answer is a sentence.
_BULLET = re.compile(r"^[-*•–+]\s+")
# In the bank: b"1" where it says nothing else when nothing is known.
STRICT_STATE = "strict"


@dataclass(frozen=True)
class Tried:
    """A candidate that was read: what it recited, the reader's answer, how probable it is that this is one, and whether
    it is enough.

    ``values``: the features of that probability, see ``gate.known.features``.
    """

    candidate: Candidate
    recital: Recital
    reading: Reading
    values: dict[str, float]
    p: float
    answers: bool

    @property
    def source(self) -> Source:
        record = self.candidate.record
        return Source(record.id, record.heading, self.recital.text, self.reading.span, record.created)


@dataclass(frozen=True)
class Outcome:
    """What came of one *question*: what the gate found, what was read, and which of that answers, best first.

    ``through``: what was read to know what the question is about; ``older``: what answers it no longer.
    """

    question: str
    found: Found
    answering: list[Tried]
    through: tuple[Tried, ...] = ()
    older: tuple[Tried, ...] = ()

    @property
    def turns(self) -> list[dict[str, str]]:
        """The question and its answer as turns of a conversation."""
        texts = [said(one.source, STYLE) for one in self.answering]
        return [{"role": "user", "content": self.question}, {"role": "assistant", "content": "\n".join(texts)}]

    @property
    def known(self) -> bool | None:
        """True, or False where the question is one for the bank, or None where it is a general one."""
        found = self.found
        about_the_bank = (
            found.near or found.opens or is_private(self.question) or gate.known.identifiers(self.question)
        )
        return True if self.answering else False if about_the_bank else None


def ask(job: Job) -> Answer:
    """The answer to the job's question; its text goes to the stream as soon as it is known."""
    started = time.perf_counter()
    clock = _Clock()
    answer, first_token = _compared(job, clock) or _answered(job, clock)
    times = replace(
        clock.times,
        first_token_ms=ms(started, first_token),
        total_ms=ms(started),
        prompt_tokens=answer.timings.prompt_tokens,
        completion_tokens=len(answer.tokens),
    )
    return replace(answer, timings=times, style=job.request.style)


def _answered(job: Job, clock: _Clock) -> Made:
    """The answer to the one or two questions that were asked."""
    question = without_opener(job.request.question)
    outcomes = _outcomes(job, clauses(question), clock)
    if len(outcomes) == 1 and outcomes[0].known is False:
        apart = _outcomes(job, halves(question), clock)
        outcomes = apart if any(outcome.answering for outcome in apart) else outcomes
    if job.is_cancelled:
        return Answer("", "ask", finish="cancelled"), time.perf_counter()
    answer, first_token = _said(job, outcomes)
    if answer.known:
        answer = replace(answer, older=_sources([one for outcome in outcomes for one in outcome.older]))
    return answer, first_token


def _outcomes(job: Job, asked: list[str], clock: _Clock) -> list[Outcome]:
    """What comes of each of these questions, the later ones asked as if the earlier had been before them in the talk."""
    outcomes: list[Outcome] = []
    for clause in asked:
        if job.is_cancelled:
            break
        history = [*job.request.history, *(turn for outcome in outcomes for turn in outcome.turns)]
        subject = job.request.subject if not outcomes else None
        clause = asked_again(clause, history, job.bank.memories.prior) or clause
        outcomes.append(_outcome(job.asking(question=clause, history=history, subject=subject), clock, part=len(asked) > 1))
    return outcomes


def _said(job: Job, outcomes: list[Outcome]) -> Made:
    """What is said after all that was read."""
    answering = [one for outcome in outcomes for one in outcome.answering]
    if job.request.options.gbnf is not None and answering:
        return _bound(job, answering)
    return _read_answer(job, outcomes) if answering else _not_known(job, outcomes)


class _Clock:
    """The milliseconds of each stage, of all questions and memories together."""

    def __init__(self) -> None:
        self.times = Timings()

    def add(self, **spent: float) -> None:
        self.times = replace(self.times, **{name: getattr(self.times, name) + ms for name, ms in spent.items()})


def _outcome(job: Job, clock: _Clock, *, part: bool = False, bridged: bool = False) -> Outcome:
    """Find, recall and read for one question; where nothing answers one that is about what another finds, in two steps.

    ``part``: it is a part of what was asked, in words of ours; ``bridged``: one of those two steps.
    """
    question, started = job.request.question, time.perf_counter()
    job = job.asking(question=job.bank.mended(question))
    clock.add(gate_ms=ms(started))
    asked = job.request
    found = _find(job, clock)
    by_hand = bool(asked.scope.gates)
    several = by_hand or (not found.leans and (found.pair or comparison(asked.question) is not None))
    tried: list[Tried] = []
    # Half of a question is often told by few words: its nearest memories are read however unlikely.
    for candidate in found.candidates[: gate.known.MOST] if found.likely or bridged else ():
        if job.is_cancelled:
            break
        tried.append(_try(job, candidate, found, clock, part=part or bridged))
        # An answer that is not sure is weighed against the next memory's; one that leans on the talk always.
        if tried[-1].answers and tried[-1].p >= gate.known.SURE and not (several or found.leans):
            break
    if by_hand:  # what is opened by hand answers: the memory that the reader finds most in, first
        tried.sort(key=lambda one: -one.reading.odds)
        tried = tried[:1] + [one for one in tried[1:] if one.reading.odds > 0]
    answering = [one for one in tried if one.answers]
    if not several:
        answering = sorted(answering, key=lambda one: -one.p)[:1]
    two = None if bridged or by_hand else steps(asked.question)
    stepped = None if two is None else _in_steps(job, two, answering, clock)
    if stepped is not None:
        return stepped
    older: tuple[Tried, ...] = ()
    when = gate.dates.when(asked.question)
    # What is of the time that the question says is not replaced by anything newer.
    if len(answering) == 1 and not by_hand and not (when and when.is_of(answering[0].candidate.record)):
        read = {one.candidate.row: one for one in tried}
        answering, older = newest(
            job.bank, job.request, answering[0], found, lambda other: read.get(other.row) or _try(job, other, found, clock)
        )
    return Outcome(question, found, answering, older=older)


def _in_steps(job: Job, two: Steps, answering: list[Tried], clock: _Clock) -> Outcome | None:
    """What the second of *two* steps finds; None where there is nothing, or where *answering* is sure to answer the whole.

    "The number of the vet who treated the mare": the note of the treatment may hold another number, or her name alone.
    """
    sure = bool(answering) and answering[0].p >= gate.known.SURE
    if sure and two.is_one:
        return None
    first = _outcome(job.asking(question=two.first), clock, bridged=True)
    words = first.answering[0].source.words if first.answering else ""
    if not words or words.lower() in job.request.question.lower():
        return None
    if sure and not (answering[0].source.id == first.answering[0].source.id and answering[0].source.words in words):
        return None
    outcome = _outcome(job.asking(question=two.second(words)), clock, bridged=True)
    if not outcome.answering:
        return None
    return replace(outcome, question=job.request.question, through=(first.answering[0],))


def _find(job: Job, clock: _Clock) -> Found:
    """The memories to read for the question: the shallow layers are run, nothing is decoded."""
    started = time.perf_counter()
    prompt, encoder = job.prompt(), job.bank.encoder(job.request)
    encoder.advance(prompt.body)
    passed = ms(started)
    found, spent = job.bank.candidates(encoder, prompt, job.request)
    clock.add(embed_ms=passed + spent.embed_ms, gate_ms=spent.gate_ms)
    return found


def _try(job: Job, candidate: Candidate, found: Found, clock: _Clock, *, part: bool = False) -> Tried:
    """*candidate* recited and read; what does not fit into the reader's context does not answer.

    ``part``: the question is not in the user's own words, or need not be answered whole.
    """
    started = recited = time.perf_counter()
    reader, asked = job.runtime.reader, job.request
    recital, reading = of_text(job.runtime.engine, ""), NOTHING_READ
    try:
        recital = recall(job.runtime, job.bank, candidate.record, lambda: job.is_cancelled)
        recited = time.perf_counter()
        question = without_before(gate.dates.without_when(asked.question, candidate.record), recital.text)
        reading = reader.read(recital, question, candidate.record.title)
        reading = replace(reading, span=terse(asked.question, recital.text, reading.span))
        reading = shaped(job, candidate, recital, question, reading)
    except DecodeError:
        reader.context.truncate(0)
    values = gate.known.features(candidate.seen, reading.odds, reading.logprob)
    if reading.span[0] == reading.span[1] or candidate.seen.about.is_another:
        p = 0.0
    elif asked.scope.gates:
        p = 1.0
    else:
        p = gate.known.probability(values) if reader.trained else float(found.opens)
    clock.add(recall_ms=ms(started, recited), read_ms=ms(recited))
    part = part or found.pair or bool(asked.scope.gates)
    answers = gate.known.answers(p, reading.odds, leans=found.leans, part=part)
    return Tried(candidate, recital, reading, values, p, answers)


Made = tuple[Answer, float]  # an answer without its times, and when its first token was there


def _read_answer(job: Job, outcomes: list[Outcome]) -> Made:
    """What the sources say; of two questions in one, also which is not known."""
    lines: list[str] = []
    for outcome in outcomes:
        sources, style = [one.source for one in outcome.answering], job.request.style
        lines += [said(source, style) + noted(outcome.question, source, style) for source in sources]
        if not outcome.answering:
            lines.append(f"{NOT_KNOWN.rstrip('.')}: {outcome.question}")
    answering = [one for outcome in outcomes for one in (*outcome.answering, *outcome.through)]
    return _put(job, "\n".join(dict.fromkeys(lines)), answering)


def _put(job: Job, text: str, sources: list[Tried]) -> Made:
    """*text*, all of it words of the *sources*, as the answer."""
    generation = job.put(text, _whole(job))
    answer = Answer(
        generation.text, "ask", _opened(sources), Timings(), generation.tokens, generation.finish,
        known=True, grounded=True, sources=_sources(sources),
    )  # fmt: skip
    return answer, generation.first_token


def _whole(job: Job) -> SamplingOptions:
    """The request's options; what was read is cut only where the user says so."""
    asked = job.request
    return asked.options if asked.limited else replace(asked.options, max_tokens=MOST_TOKENS)


def _sources(answering: list[Tried]) -> list[Source]:
    """Each once."""
    return list(dict.fromkeys(one.source for one in answering))


def _compared(job: Job, clock: _Clock) -> Made | None:
    """Which of two things the question asks for: each is asked about by itself. None: it asks not, or one is not known."""
    asked = job.request
    compare = comparison(without_opener(asked.question))
    if compare is None or asked.scope.gates or asked.options.gbnf is not None:
        return None
    sides: list[Tried] = []
    older: list[Tried] = []
    for question in compare.asks:
        outcome = _outcome(job.asking(question=question), clock)
        if not outcome.answering:
            return None
        sides.append(outcome.answering[0])
        older += outcome.older
    reckoned = reckon(job, compare, sides)
    if reckoned is None:  # both say something, but nothing to be compared: that is said
        one_memory = sides[0].source.id == sides[1].source.id
        return None if one_memory else _put(job, "\n".join(said(side.source, asked.style) for side in sides), sides)
    winner, sides = reckoned
    answer, first_token = _compared_answer(job, compare, winner, sides)
    return replace(answer, older=_sources(older)), first_token


def _compared_answer(job: Job, compare: Comparison, winner: int, both: list[Tried]) -> Made:
    """The thing that was asked for, or yes or no, and both figures."""
    sources = [one.source for one in both]
    name = compare.options[winner]
    short = ("no" if winner else "yes") if compare.whether else name
    first, second = sources if compare.whether else (sources[winner], sources[1 - winner])
    text = {
        "short": short,
        "sentence": f"{short[0].upper()}{short[1:]} ({first.words}, against {second.words}).",
        "passage": "\n".join(dict.fromkeys(source.text for source in (first, second))),
    }[job.request.style]
    return _put(job, text, [both[winner], both[1 - winner]])


def said(source: Source, style: str) -> str:
    """The answer in *source* in the form *style*; a short one has no line breaks."""
    if style == "passage":
        return source.text
    if style == "short":
        return short(source.text, source.span) or source.text
    start, end = sentences.holding(source.text, *source.span)
    return _BULLET.sub("", source.text[start:end])


def noted(question: str, source: Source, style: str) -> str:
    """The day that a memory was written on, to stand beside its answer where that is "today" or the like; else nothing."""
    sentence = source.text[slice(*sentences.holding(source.text, *source.span))]
    relative = gate.dates.is_relative(source.words) or (
        gate.dates.asks_when(question) and gate.dates.is_relative(sentence, inside=True)
    )
    return f" (noted {source.created[:10]})" if relative and style != "passage" and source.created else ""


def _bound(job: Job, answering: list[Tried]) -> Made:
    """An answer in the form that a grammar gives it: by the bare base, the recited texts in its prompt."""
    texts = [one.recital.text for one in answering]
    generation = job.from_texts(texts)
    answer = Answer(
        generation.text, "ask", _opened(answering), Timings(prompt_tokens=generation.prompt_tokens),
        generation.tokens, generation.finish,
        known=True, grounded=gate.known.grounded(generation.text, [*texts, job.request.question]),
        sources=_sources(answering),
    )  # fmt: skip
    return answer, generation.first_token


def _not_known(job: Job, outcomes: list[Outcome]) -> Made:
    """Nothing answers: the bare base does, or nobody where only memories may (``strict``)."""
    known = False if any(outcome.known is False for outcome in outcomes) else None
    nearest = (
        list(dict.fromkeys(title.rstrip(".") for o in outcomes for title in o.found.titles)) if known is False else []
    )
    if job.request.on_known is not None:
        job.request.on_known(known, nearest)
    if job.request.strict:
        generation = job.put(NOT_KNOWN, _whole(job))
    else:
        generation = job.plain(job.prompt())
    answer = Answer(
        generation.text, "ask", [], Timings(prompt_tokens=generation.prompt_tokens), generation.tokens,
        generation.finish, known=known, nearest=nearest,
    )  # fmt: skip
    return answer, generation.first_token


def _opened(answering: list[Tried]) -> list[OpenedMemory]:
    """The memories that answer, each once; their weights sum to 1."""
    best: dict[str, Tried] = {}
    for one in answering:
        best.setdefault(one.candidate.record.id, one)
    total = sum(one.p for one in best.values())
    records = [one.candidate.record for one in best.values()]
    return [
        OpenedMemory(r.id, r.heading, one.p / total, r.state == "pending")
        for r, one in zip(records, best.values(), strict=True)
    ]
