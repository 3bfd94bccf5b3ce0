"""What a question opens: the bank's evidence, kept up to date, and the gate over it.

Knows the bank, the gate and the encoder; nothing of answers, slots or adapters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TypedDict

import numpy as np

from .. import gate
from ..bank import Bank, Record
from ..bank.memory import check_tags
from ..errors import BankError, ChangedError, InputError
from . import embed, embedders
from .answer import OpenedMemory, Timings
from .context import Context
from .engine import Engine, Prompt
from .follow import anchor, is_follow_up, points_weakly, telling_words
from .likelihood import Likelihood

History = Sequence[Mapping[str, str]]
# Memories whose titles are named when none answers.
NEAREST = 3
_FIRST_WORDS = 40  # characters
# How many memories get their missing evidence in one transaction.
_BATCH = 64


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
    """A memory that may answer: the gate's log odds, and what of the question stands in it."""

    record: Record
    odds: float
    about: gate.known.Subject


@dataclass(frozen=True)
class Found:
    """The memories to read for a question, the likeliest first.

    ``likely``: whether any is worth reading; else they are only the nearest. ``opens``: whether the gate alone would
    open one. ``pair``: the question needs the first two; ``earlier``: the question of the conversation that it leans on.
    """

    candidates: list[Candidate]
    likely: bool
    opens: bool = False
    pair: bool = False
    earlier: str | None = None

    @property
    def titles(self) -> list[str]:
        """Of the candidates; the first words of one that has no title."""
        return [c.record.title or c.record.text[:_FIRST_WORDS] for c in self.candidates]


def _reading_order(found: gate.Candidates) -> list[int]:
    """Places of the candidates to read: the best, then what the question needs beside it, else the next one."""
    order = dict.fromkeys([0, *([] if found.partner is None else [found.partner]), *range(len(found.rows))])
    return [*order][: min(gate.known.MOST, len(found.rows))]


class FoundBy(TypedDict):
    """Context key, float32 [D]; words, uint32 [n], and token states, int8 [m]."""

    key: np.ndarray
    evidence: tuple[np.ndarray, np.ndarray]


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
        self._likelihood = Likelihood(reader)
        self._encoder = encoder
        self.records: list[Record] = []
        self._whitening: embed.Whitening | None = None
        self._index: gate.Index | None = None
        self._revision = -1
        self._known: set[str] = set()  # ids, in lower case
        # Evidence that could not be stored, and the memory that it is of.
        self._unsaved: dict[str, tuple[Record, tuple[np.ndarray, np.ndarray]]] = {}
        self._commonness = embed.Commonness(engine)
        self._embedder: embedders.Embedder | None = None

    def prepare(self) -> embed.Whitening:
        """The whitening, measured now unless the bank has it: the first question need not wait."""
        if self._whitening is None:
            self._whitening = embed.bank_whitening(self.bank, self._encoder())
        return self._whitening

    @property
    def embedder(self) -> embedders.Embedder:
        """What makes the bank's keys, as the bank records it."""
        name = (self.bank.get_state(embedders.STATE) or b"default").decode("utf-8", "replace")
        if self._embedder is None or self._embedder.name != name:
            self.close()
            self._embedder = embedders.make(name, self.engine, self._encoder, self.prepare)
        return self._embedder

    def close(self) -> None:
        if self._embedder is not None:
            self._embedder.close()
            self._embedder = None

    def rekey(self, name: str | None, on_progress: Callable[[int, int], None] | None = None) -> str:
        """All keys by the embedder *name* (None: the bank's own), all evidence anew; returns its name."""
        chosen = self.embedder if name is None else embedders.make(name, self.engine, self._encoder, self.prepare)
        made: dict[str, tuple[Record, np.ndarray, tuple[np.ndarray, np.ndarray]]] = {}
        while True:  # what another process changes meanwhile is made once more
            revision, records = self.bank.revision, self.bank.records()
            for done, record in enumerate(records, start=1):
                if record.id not in made or _found_in(made[record.id][0]) != _found_in(record):
                    key = chosen.memory(record.text, record.title)
                    made[record.id] = record, key, self._evidence(record.text, record.title)
                if on_progress:
                    on_progress(done, len(records))
            found_by = {record.id: made[record.id][1:] for record in records}
            try:
                self.bank.set_keys(found_by, {embedders.STATE: chosen.name.encode()}, revision)
                break
            except ChangedError:
                continue
        if chosen is not self._embedder:
            self.close()
            self._embedder = chosen
        self.refresh()
        return chosen.name

    @property
    def reads_whole_prompts(self) -> bool:
        """Every memory works on the whole prompt: a prompt that the bare base encodes is no use to any."""
        return bool(self.records) and all(kind_of(record) == "whole prompt" for record in self.records)

    def check(self, scope: Scope) -> None:
        """Raises MemoryNotFoundError for an id in *scope* that the bank does not have, InputError for such a tag."""
        for id in (*scope.only, *scope.without, *scope.gates):
            if id.lower() not in self._known:
                self.bank.get(id)
        check_tags(scope.tags, self.records)

    def refresh(self) -> bool:
        """Notice what changed in the bank, also from another process; True when something did."""
        if self.bank.revision == self._revision:
            return False
        self._complete()
        self._revision = self.bank.revision
        ids, means = self.bank.keys()
        known = {record.id: record for record in self.bank.records()}
        self.records = [known[id] for id in ids if id in known]
        self._known = {id.lower() for id in known}
        means = means[[i for i, id in enumerate(ids) if id in known]]
        self._index = None
        if self.records:
            words = self.bank.words()
            sequences = [words[r.id] if r.id in words else gate.sequence(r.text, r.title) for r in self.records]
            keys = self.embedder.keys(means)
            keys = keys if self.embedder.name == embedders.PAPER else keys.astype(np.float16)
            self._index = gate.Index(sequences, keys, self._tokens)
        return True

    def _complete(self) -> None:
        """Make the evidence that the bank lacks (an older bank, a new memory) and store it."""
        missing = self.bank.without_evidence()
        ids = {record.id for record in missing}
        self._unsaved = {id: kept for id, kept in self._unsaved.items() if id in ids}
        for start in range(0, len(missing), _BATCH):
            batch = missing[start : start + _BATCH]
            for record in batch:
                if record.id not in self._unsaved or _found_in(self._unsaved[record.id][0]) != _found_in(record):
                    self._unsaved[record.id] = record, self._evidence(record.text, record.title)
            try:
                self.bank.set_evidence([self._unsaved[record.id] for record in batch])
            except BankError:  # a bank that can only be read still answers
                continue
            for record in batch:
                del self._unsaved[record.id]

    def found_by(self, text: str, title: str | None) -> FoundBy:
        """What the gate finds a memory by, as arguments of ``Bank.add``; one shallow pass over its text."""
        return {"key": self.embedder.memory(text, title), "evidence": self._evidence(text, title)}

    def _evidence(self, text: str, title: str | None) -> tuple[np.ndarray, np.ndarray]:
        tokens = embed.memory_tokens(self._encoder(), self.prepare(), self._commonness, text, title)
        return gate.sequence(text, title), tokens.ravel()

    def _tokens(self, rows: Sequence[int]) -> list[np.ndarray]:
        ids = [self.records[row].id for row in rows]
        found = self.bank.tokens([id for id in ids if id not in self._unsaved])
        stored = iter(found)
        flat = [self._unsaved[id][1][1] if id in self._unsaved else next(stored) for id in ids]
        width = self.prepare().token_width
        return [tokens[: len(tokens) // width * width].reshape(-1, width) for tokens in flat]

    # -- one question -----------------------------------------------------------------------

    def open(
        self, context: Context, prompt: Prompt, scope: Scope = EVERYTHING, history: History = ()
    ) -> tuple[Opened, Timings]:
        """Gate the *prompt* that *context* holds; its states are read, nothing is decoded but for follow-ups."""
        self.refresh()
        self.check(scope)
        started = time.perf_counter()
        if scope.gates:
            return self._by_hand(scope), Timings()
        if self._index is None:
            return Opened([], []), Timings()
        reading = self._read(context, prompt)
        embedded = time.perf_counter()
        before = self._likelihood.spent_ms
        candidates, _ = self._weigh(reading, scope, history)
        opened = self._shown(gate.decide(candidates, self.policy))
        rerank_ms = self._likelihood.spent_ms - before
        gate_ms = (time.perf_counter() - embedded) * 1000 - rerank_ms
        return opened, Timings(embed_ms=(embedded - started) * 1000, gate_ms=gate_ms, rerank_ms=rerank_ms)

    def candidates(
        self, context: Context, prompt: Prompt, scope: Scope = EVERYTHING, history: History = ()
    ) -> tuple[Found, Timings]:
        """The memories that *prompt*, which *context* holds, may be about, to be read one after the other."""
        self.refresh()
        self.check(scope)
        started = time.perf_counter()
        if scope.gates:
            records = [self.bank.get(id) for id in scope.gates]
            return Found(
                [Candidate(r, gate.known.CERTAIN, gate.known.Subject()) for r in records], True, True
            ), Timings()
        if self._index is None:
            return Found([], False), Timings()
        reading = self._read(context, prompt)
        embedded = time.perf_counter()
        found, earlier = self._weigh(reading, scope, history, rerank=False)
        names = [reading.question.words[i] for name in reading.question.names for i in name]
        # A slip of the keyboard stands for what it was taken for; a clause without spaces is no name.
        names = [found.read_as.get(name, name) for name in names if ord(max(name)) < 0x2E80]
        likely = 1 - found.p_none >= gate.known.READ_FROM
        places = _reading_order(found) if likely else range(min(NEAREST, len(found.rows)))
        candidates = []
        for place in places:
            record = self.records[int(found.rows[place])]
            text = f"{record.title or ''}\n{record.text}"
            # What leans on an earlier question need not name its subject again.
            about = gate.known.subject(reading.text, [] if earlier else names, found.telling, text)
            candidates.append(Candidate(record, float(found.scores[place]), about))
        times = Timings(embed_ms=(embedded - started) * 1000, gate_ms=(time.perf_counter() - embedded) * 1000)
        opens = 1 - found.p_none >= self.policy.threshold
        return Found(candidates, likely, opens, found.partner is not None, earlier), times

    def judge(self, question: str, scope: Scope = EVERYTHING, history: History = ()) -> Judged:
        """What the gate makes of *question*, by the shallow layers alone unless memories are near each other."""
        self.refresh()
        self.check(scope)
        if self._index is None:
            return Judged([], [], gate.evidence.NOTHING, [])
        candidates, _ = self._weigh(self._encode(question), scope, history)
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
        return embed.read(context, prompt, self.prepare(), self._commonness)

    def _weigh(
        self, reading: embed.Reading, scope: Scope, history: History, rerank: bool = True
    ) -> tuple[gate.Candidates, str | None]:
        """The candidates, and the earlier question that decided them where *reading* leans on one."""
        assert self._index is not None
        allowed = None if scope.is_everything else np.array([scope.allows(r) for r in self.records], bool)
        if self.embedder.name == embedders.PAPER:
            query = self.embedder.query(reading.text, reading.parts[1])
            return gate.by_product(query, self._index.keys, allowed), None
        find = partial(self._index.find, allowed=allowed, threads=self.engine.threads)
        candidates = find(*self._parts(reading))
        earlier, subject = self._subject(reading, candidates, find, history)
        candidates = candidates if subject is None else subject
        return self._look_again(earlier or reading.text, candidates) if rerank else candidates, earlier

    def _subject(
        self,
        reading: embed.Reading,
        alone: gate.Candidates,
        find: Callable[..., gate.Candidates],
        history: History,
    ) -> tuple[str | None, gate.Candidates | None]:
        """The earlier question that *reading* leans on, and what it opened; None where it stands alone, as *alone* says."""
        assert self._index is not None
        if not history or not is_follow_up(reading.question):
            return None, None
        names = reading.question.names
        if names and 1 - alone.p_none >= self.policy.threshold:
            return None, None  # it names what it is about: a change of subject
        earlier = anchor(history, self._commonness)
        if earlier is None:
            return None, None
        subject = find(*self._parts(self._encode(earlier)))
        if 1 - subject.p_none < self.policy.threshold:
            return None, None
        best = int(subject.rows[0])
        if names and not self._index.holds(best, reading.question, names):
            return None, None  # it speaks of somebody that the memory does not know
        telling = telling_words(reading.question)
        if points_weakly(reading.question) and len(telling) > 1:
            if not any(self._index.holds(best, reading.question, [[word]]) for word in telling):
                return None, None  # "it" or "that" may stand for nothing, and nothing it says is in the memory
        return earlier, subject

    def _look_again(self, question: str, candidates: gate.Candidates) -> gate.Candidates:
        """*candidates*, those near each other told apart by how much likelier *question* makes what they say."""
        gains = partial(self._likelihood.gains, question)
        return gate.rerank.look_again(candidates, self.policy, lambda row: self.records[row].text, gains)

    def _parts(self, reading: embed.Reading) -> tuple[gate.Question, np.ndarray, np.ndarray, np.ndarray]:
        question, own, states, owner = reading.parts
        return question, self.embedder.query(reading.text, own), states, owner

    # -- from candidates to memories ----------------------------------------------------------

    def _shown(self, chosen: list[gate.Opened]) -> Opened:
        records = [self.records[o.index] for o in chosen]
        return Opened([_show(r, o.gate) for r, o in zip(records, chosen)], records)

    def _by_hand(self, scope: Scope) -> Opened:
        records = [self.bank.get(id) for id in scope.gates]
        check_kinds(records)
        return Opened([_show(r, float(g)) for r, g in zip(records, scope.gates.values())], records)


def _found_in(record: Record) -> tuple[str, str | None]:
    """What key and evidence are made of."""
    return record.text, record.title


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
