"""What a question opens: the bank's evidence, kept up to date, and the gate over it.

Knows the bank, the gate and the encoder; nothing of answers, slots or adapters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np

from .. import gate
from ..bank import Bank, Record
from ..bank.memory import check_tags
from ..errors import InputError
from . import embed, embedders
from .answer import OpenedMemory, Timings
from .bank_index import BankIndex
from .context import Context
from .engine import Engine, Prompt
from .follow import anchor, is_follow_up, points_weakly, sources, telling_words
from .likelihood import Likelihood

History = Sequence[Mapping[str, str]]
# Memories whose titles are named when none answers.
NEAREST = 3
_FIRST_WORDS = 40  # characters
# Log odds that the last answer's memory gains where a question leans on what was said; what a memory has of which the
# question says nothing, and a lone memory's lead. Fitted on dialogues of our own writing and the developers' notes.
_SUBJECT, _NO_SCORE, _NO_COSINE, _NO_RIVAL = 2.2, -8.0, 0.78, 6.0
_BY_ITSELF = -2.0  # log odds from which on a memory is found by a question's own words
_CANDIDATES = 4  # that are handed on, more than are read
_SOURCES = 2  # memories that one answer came from


@dataclass(frozen=True)
class Scope:
    """Which memories may open at all.

    ``only`` and ``without``: ids; ``tags``: a memory must carry one of them (``Record.tags``), in upper or
    lower case. ``gates``: ids that open whatever the gate says, with these weights.
    """

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    gates: Mapping[str, float] = field(default_factory=dict)

    def allows(self, record: Record) -> bool:
        name = record.id.lower()
        return (not self.only or name in self._names[0]) and name not in self._names[1] and record.carries(self.tags)

    @cached_property
    def _names(self) -> tuple[frozenset[str], frozenset[str]]:
        """``only`` and ``without`` in lower case: a scope may name thousands."""
        return frozenset(map(str.lower, self.only)), frozenset(map(str.lower, self.without))

    @property
    def is_everything(self) -> bool:
        return not (self.only or self.without or self.tags)


EVERYTHING = Scope()


@dataclass
class Opened:
    """What the gate let through, with everything needed to answer from it, best first.

    ``left_out``: what it let through besides, but of a kind that cannot share a mix with these.
    """

    shown: list[OpenedMemory]
    records: list[Record]
    left_out: list[OpenedMemory] = field(default_factory=list)

    def of_one_kind(self) -> Opened:
        """Those of the best one's kind, which can share a mix; the others are left out."""
        keep = [j for j, record in enumerate(self.records) if kind_of(record) == kind_of(self.records[0])]
        if len(keep) == len(self.records):
            return self
        total = sum(self.shown[j].gate for j in keep)
        return Opened(
            [replace(self.shown[j], gate=self.shown[j].gate / total) for j in keep],
            [self.records[j] for j in keep],
            [memory for j, memory in enumerate(self.shown) if j not in keep],
        )


@dataclass(frozen=True)
class Candidate:
    """A memory that may answer, and what the gate saw of it; ``earlier``: a question to read before the user's own.

    ``row``: its number in the bank, -1 where it was opened by hand.
    """

    record: Record
    seen: gate.known.Seen
    earlier: str | None = None
    row: int = -1


@dataclass(frozen=True)
class Found:
    """The memories to read for a question, the likeliest first.

    ``likely``: whether any is worth reading; else they are only the nearest. ``opens``: whether the gate alone would
    open one. ``pair``: the question needs the first two; ``leans``: it leans on what was said before.
    """

    candidates: list[Candidate]
    likely: bool
    opens: bool = False
    pair: bool = False
    leans: bool = False

    @property
    def titles(self) -> list[str]:
        """Of the candidates; the first words of one that has no title."""
        return [c.record.title or c.record.text[:_FIRST_WORDS] or c.record.id for c in self.candidates[:NEAREST]]


@dataclass(frozen=True)
class Talk:
    """A conversation so far: the last question that stood on its own, and the rows of the last answer's memories."""

    question: str
    rows: list[int]


@dataclass(frozen=True)
class Judged:
    """What the gate makes of a question: the memories that may apply, and those that open, by id."""

    ids: list[str]
    titles: list[str]
    candidates: gate.Candidates
    opened: list[tuple[str, float]]
    pending: list[bool] = field(default_factory=list)


class Opening:
    """The gate of one bank. Not thread-safe: hold the engine's lock."""

    def __init__(
        self,
        bank: Bank,
        engine: Engine,
        encoder: Callable[[], Context],
        reader: Callable[[], Context],
        policy: gate.GatePolicy,
    ):
        self.bank, self.engine, self.policy = bank, engine, policy
        self.memories = BankIndex(bank, engine, encoder)
        self._likelihood = Likelihood(reader)
        self._encoder = encoder

    def close(self) -> None:
        self.memories.close()

    @property
    def records(self) -> Sequence[Record]:
        return self.memories.records

    @property
    def reads_whole_prompts(self) -> bool:
        """Every memory works on the whole prompt: a prompt that the bare base encodes is no use to any."""
        return bool(self.records) and all(kind_of(record) == "whole prompt" for record in self.records)

    def check(self, scope: Scope) -> None:
        """Raises MemoryNotFoundError for an id in *scope* that the bank does not have, InputError for such a tag."""
        self.memories.check_ids((*scope.only, *scope.without, *scope.gates))
        check_tags(scope.tags, self.records)

    # -- one question -----------------------------------------------------------------------

    def open(
        self, context: Context, prompt: Prompt, scope: Scope = EVERYTHING, history: History = ()
    ) -> tuple[Opened, Timings]:
        """Gate the *prompt* that *context* holds; its states are read, nothing is decoded but for follow-ups."""
        self.memories.refresh()
        self.check(scope)
        started = time.perf_counter()
        if scope.gates:
            return self._by_hand(scope), Timings()
        if self.memories.index is None:
            return Opened([], []), Timings()
        reading = self._read(context, prompt)
        embedded = time.perf_counter()
        before = self._likelihood.spent_ms
        candidates = self._weigh(reading, scope, history)
        opened = self._shown(gate.decide(candidates, self.policy))
        rerank_ms = self._likelihood.spent_ms - before
        gate_ms = (time.perf_counter() - embedded) * 1000 - rerank_ms
        return opened, Timings(embed_ms=(embedded - started) * 1000, gate_ms=gate_ms, rerank_ms=rerank_ms)

    def candidates(
        self, context: Context, prompt: Prompt, scope: Scope = EVERYTHING, history: History = ()
    ) -> tuple[Found, Timings]:
        """The memories that *prompt*, which *context* holds, may be about, to be read one after the other."""
        self.memories.refresh()
        self.check(scope)
        started = time.perf_counter()
        if scope.gates:
            records = [self.memories.told(self.bank.get(id)) for id in scope.gates]
            return Found([Candidate(r, gate.known.Seen(gate.known.CERTAIN)) for r in records], True, True), Timings()
        if self.memories.index is None:
            return Found([], False), Timings()
        reading = self._read(context, prompt)
        embedded = time.perf_counter()
        found, talk = self._find(reading, scope), self._talk(history, scope)
        considered = self.consider(reading, found, talk)
        times = Timings(embed_ms=(embedded - started) * 1000, gate_ms=(time.perf_counter() - embedded) * 1000)
        return considered, times

    def consider(self, reading: embed.Reading, found: gate.Candidates, talk: Talk | None) -> Found:
        """Which of the candidates *found* to read, and in what order, after what the conversation was about."""
        leans = talk is not None and is_follow_up(reading.question)
        ranked = self._ranked(found, {row: 1.0 if leans else 0.2 for row in talk.rows} if talk else {})
        order = [*ranked]
        least = gate.known.READ_FROM if found.cosines is None else gate.known.READ_FROM_MEANING
        likely = bool(order) and (ranked[order[0]][0] >= least or leans)
        partner = None if found.partner is None or leans else int(found.rows[found.partner])
        if partner is not None:
            order = [order[0], *dict.fromkeys([partner, *order[1:]])]
        # A slip of the keyboard stands for what it was taken for; a clause without spaces is no name.
        words = [reading.question.words[i] for name in reading.question.names for i in name]
        names = [found.read_as.get(word, word) for word in words if ord(max(word)) < 0x2E80]
        candidates = []
        for place, row in enumerate(order[:_CANDIDATES]):
            record, (score, seen) = self.records[row], ranked[row]
            if likely and place < gate.known.MOST:
                record = self.memories.told(record)
            rival = max((ranked[other][0] for other in ranked if other != row), default=score - _NO_RIVAL)
            text = f"{record.title or ''}\n{record.text}"
            # What leans on an earlier question need not name its subject again; a memory that its own words find is
            # asked by these alone.
            earlier = talk.question if talk and leans and (seen.subject or score < _BY_ITSELF) else None
            about = gate.known.subject(reading.text, [] if earlier else names, found.telling, text)
            candidates.append(Candidate(record, replace(seen, lead=score - rival, about=about), earlier, row))
        opens = 1 - found.p_none >= self.policy.threshold
        return Found(candidates, likely, opens, partner is not None, leans)

    def versions(self, candidate: Candidate, found: Found, scope: Scope) -> list[tuple[Candidate, float]]:
        """Memories that may say the same as *candidate* at another time, and how alike they are; the likest first."""
        if candidate.row < 0 or self.memories.embedder == embedders.PAPER:
            return []
        alike = self.memories.alike(candidate.row)
        least = gate.known.ALIKE if self.memories.text_embedder is None else gate.known.ALIKE_MEANING
        nearest = np.argsort(-alike, kind="stable")[: 1 + _CANDIDATES].tolist()
        near = [row for row in nearest if alike[row] >= least and scope.allows(self.records[row])]
        known = {other.row: other for other in found.candidates}
        lowest = gate.known.Seen(_NO_SCORE, cosine=None if candidate.seen.cosine is None else _NO_COSINE)
        others = [known.get(row) or Candidate(self.memories.told(self.records[row]), lowest, candidate.earlier, row) for row in near]
        return [(other, float(alike[other.row])) for other in others if other.row != candidate.row]

    def _ranked(self, found: gate.Candidates, subject: Mapping[int, float]) -> dict[int, tuple[float, gate.known.Seen]]:
        """Log odds of each row, the best first, and what the gate saw of it.

        ``subject``: of the rows that the last answer came from, how much the question leans on it, 0 to 1.
        """
        alone = found.scores if found.alone is None else found.alone
        lowest = None if found.cosines is None else _NO_COSINE
        # Nothing that the question says is in these, or next to nothing.
        ranked = {
            row: (_NO_SCORE + _SUBJECT * share, gate.known.Seen(_NO_SCORE, cosine=lowest, subject=share))
            for row, share in subject.items()
        }
        for place, row in enumerate(found.rows.tolist()):
            share, cosine = subject.get(row, 0.0), None if found.cosines is None else float(found.cosines[place])
            seen = gate.known.Seen(float(alone[place]), cosine=cosine, subject=share)
            ranked[row] = float(found.scores[place]) + _SUBJECT * share, seen
        return dict(sorted(ranked.items(), key=lambda item: -item[1][0]))

    def judge(self, question: str, scope: Scope = EVERYTHING, history: History = ()) -> Judged:
        """What the gate makes of *question*, by the shallow layers alone unless memories are near each other."""
        self.memories.refresh()
        self.check(scope)
        if self.memories.index is None:
            return Judged([], [], gate.evidence.NOTHING, [])
        candidates = self._weigh(self._encode(question), scope, history)
        opened = self._by_hand(scope) if scope.gates else self._shown(gate.decide(candidates, self.policy))
        records = [self.records[row] for row in candidates.rows]
        return Judged(
            [r.id for r in records],
            [r.title or r.id for r in records],
            candidates,
            [(m.id, m.gate) for m in opened.shown],
            [r.state == "pending" for r in records],
        )

    def _encode(self, question: str) -> embed.Reading:
        context = self._encoder()
        prompt = embed.text_prompt(self.engine, question)
        embed.advance(context, prompt.body)
        return self._read(context, prompt)

    def _read(self, context: Context, prompt: Prompt) -> embed.Reading:
        return embed.read(context, prompt, self.memories.prepare(), self.memories.commonness)

    def _find(self, reading: embed.Reading, scope: Scope) -> gate.Candidates:
        """The memories that *reading* may be about."""
        index = self.memories.index
        assert index is not None
        allowed = None if scope.is_everything else np.array([scope.allows(r) for r in self.records], bool)
        if self.memories.embedder == embedders.PAPER:
            return gate.by_product(self.memories.keys.query(reading.text, reading.parts[1]), index.keys, allowed)
        meaning = self.memories.meaning(reading.text)
        return index.find(*reading.parts, allowed=allowed, threads=self.engine.threads, meaning=meaning)

    def _weigh(self, reading: embed.Reading, scope: Scope, history: History) -> gate.Candidates:
        """The candidates, those of an earlier question where *reading* leans on one; near ones told apart."""
        candidates = self._find(reading, scope)
        if self.memories.embedder == embedders.PAPER:
            return candidates
        earlier, subject = self._subject(reading, candidates, scope, history)
        return self._look_again(earlier or reading.text, candidates if subject is None else subject)

    def _talk(self, history: History, scope: Scope) -> Talk | None:
        """What the conversation is about: the memories that its last answer came from."""
        asked = anchor(history, self.memories.commonness)
        answers = [turn["content"] for turn in history if turn.get("role") == "assistant"]
        if asked is None or not answers:
            return None
        rows = sources(answers[-1], self.records)
        if not rows:  # in other words than a memory's, or in too few
            before = self._find(self._encode(asked), scope)
            rows = [int(before.rows[0])] if 1 - before.p_none >= self.policy.threshold else []
        rows = [row for row in rows if scope.allows(self.records[row])]
        return Talk(asked, rows[:_SOURCES]) if rows else None

    def _subject(
        self,
        reading: embed.Reading,
        alone: gate.Candidates,
        scope: Scope,
        history: History,
    ) -> tuple[str | None, gate.Candidates | None]:
        """The earlier question that *reading* leans on, and what it opened; None where it stands alone, as *alone* says."""
        assert self.memories.index is not None
        if not history or not is_follow_up(reading.question):
            return None, None
        names = reading.question.names
        if names and 1 - alone.p_none >= self.policy.threshold:
            return None, None  # it names what it is about: a change of subject
        earlier = anchor(history, self.memories.commonness)
        if earlier is None:
            return None, None
        subject = self._find(self._encode(earlier), scope)
        if 1 - subject.p_none < self.policy.threshold:
            return None, None
        best = int(subject.rows[0])
        if names and not self.memories.index.holds(best, reading.question, names):
            return None, None  # it speaks of somebody that the memory does not know
        telling = telling_words(reading.question)
        if points_weakly(reading.question) and len(telling) > 1:
            if not any(self.memories.index.holds(best, reading.question, [[word]]) for word in telling):
                return None, None  # "it" or "that" may stand for nothing, and nothing it says is in the memory
        return earlier, subject

    def _look_again(self, question: str, candidates: gate.Candidates) -> gate.Candidates:
        """*candidates*, those near each other told apart by how much likelier *question* makes what they say."""
        gains = partial(self._likelihood.gains, question)
        return gate.rerank.look_again(candidates, self.policy, lambda row: self.memories.told(self.records[row]).text, gains)

    # -- from candidates to memories ----------------------------------------------------------

    def _shown(self, chosen: list[gate.Opened]) -> Opened:
        records = [self.records[o.index] for o in chosen]
        return Opened([_show(r, o.gate) for r, o in zip(records, chosen)], records)

    def _by_hand(self, scope: Scope) -> Opened:
        records = [self.bank.get(id) for id in scope.gates]
        check_kinds(records)
        return Opened([_show(r, float(g)) for r, g in zip(records, scope.gates.values())], records)


def _show(record: Record, weight: float) -> OpenedMemory:
    return OpenedMemory(record.id, record.title or record.id, weight, record.state == "pending")


def kind_of(record: Record) -> str:
    """When a memory's adapter works, which all memories of one answer share."""
    if record.state == "pending":
        return "pending"
    return "activated" if record.activated else "whole prompt"


def check_kinds(records: Sequence[Record]) -> None:
    """Raises InputError unless *records* can share an answer."""
    kinds = sorted({kind_of(record) for record in records})
    if len(kinds) > 1:
        raise InputError(
            f"got memories of different kinds to open ({', '.join(kinds)}); expected one kind; open them one by one"
        )
