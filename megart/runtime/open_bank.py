"""A bank that is open: what its memories are found by, the gate over them, and their adapters in use.

Knows the bank, the gate and the encoder; nothing of answers, prompts or the slot.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from .. import gate
from ..adapter import Adapter
from ..bank import Bank, Record
from ..bank.memory import check_tags
from ..openmp import one_blas_thread
from . import embed, embedders
from .adapter_cache import AdapterCache
from .answer import OpenedMemory, Timings
from .bank_index import BankIndex
from .context import Context
from .engine import Prompt
from .follow import anchor, asked, is_follow_up, points_weakly, sources, telling_words
from .found import Candidate, Found, Judged, Opened, Talk, check_kinds, kind_of
from .likelihood import Likelihood
from .recall import recital_name, unheld_text
from .request import Request
from .runtime import Runtime, ms
from .scope import EVERYTHING, Scope
from .usage import Usage

History = Sequence[Mapping[str, str]]
# Log odds that the last answer's memory gains where a question leans on what was said; what a memory has of which the
# question says nothing, and a lone memory's lead. Fitted on dialogues of our own writing and the developers' notes.
_SUBJECT, _NO_SCORE, _NO_RIVAL = 2.2, -8.0, 6.0
# What a memory gains by the day it was written on for each of year, month and day that the question names; not fitted.
_OF_THEN = 2.0
_CANDIDATES = 4  # that are handed on, more than are read
_MEANT_FROM = 1.0  # nats: a word of the bank that is so much likelier in a question was meant; chosen on our own banks
_SOURCES = 2  # memories that one answer came from


class OpenBank:
    """*bank* on a runtime with its base. On the model's thread only, see ``Runtime.call``.

    Raises BaseMismatchError where the bank belongs to another base.
    """

    def __init__(self, bank: Bank, runtime: Runtime, *, policy: gate.GatePolicy | None = None):
        bank.check_base(runtime.engine.model)
        self.bank, self.policy, self._runtime = bank, policy or gate.GatePolicy(), runtime
        self.memories = BankIndex(bank, runtime.engine, lambda: runtime.encoder, lambda: runtime.deep_encoder)
        self._likelihood = Likelihood(lambda: runtime.reranker)
        self._adapters = AdapterCache()
        self.memories.tell = lambda record: unheld_text(runtime, self, record)
        #: What memories without a text have recited, by id.
        self.unheld: dict[str, str] = {}
        #: Recitals of its memories that the reader was given, by name.
        self.recited: set[tuple[str, str]] = set()
        self.usage = Usage(bank)
        runtime.guests.append(self)

    def idle(self) -> None:
        """Tell the bank, now and then, which memories answered."""
        self.usage.tell()

    def brings(self) -> bytes | None:
        """The file of the reader that was packed with the bank."""
        return self.bank.get_state("reader")

    def close(self) -> None:
        """Free what finds its memories; the bank itself stays open. Idempotent."""
        if self in self._runtime.guests:
            self._runtime.guests.remove(self)
            self.usage.tell(now=True)
            self.memories.close()

    def refresh(self) -> None:
        """Notice what changed in the bank, also from another process."""
        if not self.memories.refresh():
            return
        if len(self._adapters):
            self._adapters.keep_only({(r.id, r.adapter_sha256) for r in self.records})
        if self.recited:
            gone = self.recited.difference(map(recital_name, self.records))
            self._runtime.forget(gone)
            self.recited -= gone

    def adapter(self, record: Record) -> Adapter:
        """The adapter of *record*. Raises BankError, with the remedy, for a damaged one."""
        return self._adapters.get((record.id, record.adapter_sha256), lambda: self.bank.adapter(record.id))

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

    def encoder(self, request: Request) -> Context:
        """What reads the request's prompt for the gate; of one in a talk, which is long, the first layers only."""
        return self._runtime.encoder if request.history else self.memories.encoder

    @one_blas_thread
    def open(self, context: Context, prompt: Prompt, request: Request | None = None) -> tuple[Opened, Timings]:
        """Gate the *prompt* that *context* holds; its states are read, nothing is decoded but for follow-ups."""
        scope, history = (request.scope, request.history) if request else (EVERYTHING, [])
        self.check(scope)
        started = time.perf_counter()
        if scope.gates:
            return self._by_hand(scope), Timings()
        if self.memories.index is None:
            return Opened([], []), Timings()
        encoded = self._read(context, prompt)
        embedded = time.perf_counter()
        earlier, weighed = self._weigh(encoded, scope, history)
        gated = time.perf_counter()
        candidates = self._rerank(earlier, weighed)
        rerank_ms = 0.0 if candidates is weighed else ms(gated)
        opened = self._shown(gate.decide(candidates, self.policy))
        return opened, Timings(embed_ms=ms(started, embedded), gate_ms=ms(embedded, gated), rerank_ms=rerank_ms)

    @one_blas_thread
    def candidates(self, context: Context, prompt: Prompt, request: Request) -> tuple[Found, Timings]:
        """The memories that *prompt*, which *context* holds, may be about, to be read one after the other."""
        scope = request.scope
        self.check(scope)
        started = time.perf_counter()
        if scope.gates:
            records = [self.memories.told(self.bank.get(id)) for id in scope.gates]
            return Found([Candidate(r, gate.known.Seen(gate.known.CERTAIN)) for r in records], True, True, True), Timings()
        if self.memories.index is None:
            return Found([], False), Timings()
        encoded = self._read(context, prompt)
        embedded = time.perf_counter()
        weighed, talk = self._find(encoded, scope), self._talk(request)
        considered = self.consider(encoded, weighed, talk)
        return considered, Timings(embed_ms=ms(started, embedded), gate_ms=ms(embedded))

    def mended(self, question: str) -> str:
        """*question* with words of the bank in place of slips of the keyboard, for an embedder and the reader.

        Only where the base finds the question likelier so: a rare word may be no slip.
        """
        index, prior = self.memories.index, self.memories.prior
        if index is None or self.memories.embedder == embedders.PAPER:
            return question
        _, read_as = index.corrected(gate.read_question(question, prior, prior.knows))
        for typed, meant in read_as.items():
            other = re.sub(rf"\b{typed}\b", meant.capitalize() if typed.istitle() else meant, question)
            likelier = self._likelihood.likelier(other, question)
            if likelier is not None and likelier >= _MEANT_FROM:
                question = other
        return question

    def consider(self, encoded: embed.EncodedQuestion, weighed: gate.Candidates, talk: Talk | None) -> Found:
        """Which of the candidates *weighed* to read, and in what order, after what the conversation was about."""
        leans = talk is not None and is_follow_up(encoded.question, talk.asked)
        ranked = self._ranked(weighed, dict.fromkeys(talk.rows, 1.0 if leans else 0.2) if talk else {})
        when = gate.dates.when(encoded.text)
        then = {row for row in ranked if when and when.is_of(self.records[row])}
        gain = _OF_THEN * when.parts if when else 0.0
        ranked = {row: (score + gain * (row in then), seen) for row, (score, seen) in ranked.items()}
        order = sorted(ranked, key=lambda row: -ranked[row][0])
        known, best = gate.known, ranked[order[0]][0] if order else -np.inf
        least, near = (
            (known.READ_FROM, known.NEAR) if weighed.meant is None else (known.READ_FROM_MEANING, known.NEAR_MEANING)
        )
        likely = best >= least or (leans and bool(order))
        partner = None if weighed.partner is None or leans else int(weighed.rows[weighed.partner])
        if partner is not None:
            order = [order[0], *dict.fromkeys([partner, *order[1:]])]
        # A slip of the keyboard stands for what it was taken for; a clause without spaces is no name.
        words = [encoded.question.words[i] for name in encoded.question.names for i in name]
        names = [weighed.read_as.get(word, word) for word in words if ord(max(word)) < 0x2E80]
        candidates = []
        for place, row in enumerate(order[:_CANDIDATES]):
            record, (score, seen) = self.records[row], ranked[row]
            if likely and place < gate.known.MOST:
                record = self.memories.told(record)
            rival = max((ranked[other][0] for other in ranked if other != row), default=score - _NO_RIVAL)
            dated = encoded.text[slice(*when.span)] if when and row in then else ""
            text = f"{record.titled_text}\n{dated}"
            # What leans on an earlier question need not name its subject again.
            about = gate.known.subject(encoded.text, [] if leans and seen.subject else names, weighed.telling, text)
            candidates.append(Candidate(record, replace(seen, margin=score - rival, about=about), row))
        opens = 1 - weighed.p_none >= self.policy.threshold
        return Found(candidates, likely, best >= near, opens, partner is not None, leans)

    @one_blas_thread
    def versions(
        self, candidate: Candidate, found: Found, scope: Scope, may_be: Callable[[Record], bool]
    ) -> list[tuple[Candidate, gate.versions.Version]]:
        """Memories that may say the same as *candidate* at another time: what the question may be about, and what is like it.

        ``may_be``: whether a memory can be one at all; of others no text is recited.
        """
        if candidate.row < 0 or self.memories.embedder == embedders.PAPER:
            return []
        alike = self.memories.alike(candidate.row)
        nearest = [row for row in np.argsort(-alike, kind="stable").tolist()[: 1 + _CANDIDATES] if row != candidate.row]
        asked = {other.row: other for other in found.candidates}
        unseen = gate.known.Seen(_NO_SCORE)
        made = []
        for row in dict.fromkeys([*asked, *nearest]):
            if row == candidate.row or not scope.allows(self.records[row]) or not may_be(self.records[row]):
                continue
            other = asked.get(row) or Candidate(self.memories.told(self.records[row]), unseen, row)
            version = other.version([*asked].index(row) if row in asked else len(asked))
            cosine = float(alike[row]) if self.memories.compares else None
            made.append((other, replace(version, alike=cosine, nearest=row == nearest[0])))
        return made

    def _ranked(
        self, weighed: gate.Candidates, subject: Mapping[int, float]
    ) -> dict[int, tuple[float, gate.known.Seen]]:
        """Log odds of each row, the best first, and what the gate saw of it.

        ``subject``: of the rows that the last answer came from, how much the question leans on it, 0 to 1.
        """
        alone = weighed.scores if weighed.alone is None else weighed.alone
        unmeant = weighed.meant is None and len(weighed.rows)  # by words alone
        lowest = None if self.memories.text_embedder is None or unmeant else _NO_SCORE
        # Nothing that the question says is in these, or next to nothing.
        ranked = {
            row: (_NO_SCORE + _SUBJECT * share, gate.known.Seen(_NO_SCORE, meant=lowest, subject=share))
            for row, share in subject.items()
        }
        for place, row in enumerate(weighed.rows.tolist()):
            share, meant = subject.get(row, 0.0), None if weighed.meant is None else float(weighed.meant[place])
            seen = gate.known.Seen(float(alone[place]), meant=meant, subject=share)
            ranked[row] = float(weighed.scores[place]) + _SUBJECT * share, seen
        return dict(sorted(ranked.items(), key=lambda item: -item[1][0]))

    @one_blas_thread
    def judge(self, question: str, scope: Scope = EVERYTHING, history: History = ()) -> Judged:
        """What the gate makes of *question*, by the shallow layers alone unless memories are near each other."""
        self.refresh()
        self.check(scope)
        if self.memories.index is None:
            return Judged([], [], gate.evidence.NOTHING, [])
        candidates = self._rerank(*self._weigh(self._encode(question), scope, history))
        opened = self._by_hand(scope) if scope.gates else self._shown(gate.decide(candidates, self.policy))
        records = [self.records[row] for row in candidates.rows]
        return Judged(
            [r.id for r in records],
            [r.heading for r in records],
            candidates,
            [(m.id, m.gate) for m in opened.shown],
            [r.state == "pending" for r in records],
        )

    def _encode(self, question: str) -> embed.EncodedQuestion:
        context = self.memories.encoder
        prompt = embed.text_prompt(self._runtime.engine, question)
        context.advance(prompt.body)
        return self._read(context, prompt)

    def _read(self, context: Context, prompt: Prompt) -> embed.EncodedQuestion:
        return embed.read(context, prompt, self.memories.prepare(), self.memories.prior)

    def _find(self, encoded: embed.EncodedQuestion, scope: Scope) -> gate.Candidates:
        """The memories that *encoded* may be about."""
        index = self.memories.index
        assert index is not None
        allowed = None if scope.is_everything else np.array([scope.allows(r) for r in self.records], bool)
        if self.memories.embedder == embedders.PAPER:
            return gate.by_product(self.memories.keys.query(encoded.text, encoded.parts[1]), index.keys, allowed)
        meaning = self.memories.meaning(encoded.text)
        return index.find(*encoded.parts, allowed=allowed, threads=self._runtime.engine.threads, meaning=meaning)

    def _weigh(self, encoded: embed.EncodedQuestion, scope: Scope, history: History) -> tuple[str, gate.Candidates]:
        """The question and its candidates; an earlier question and those of it where *encoded* leans on one."""
        candidates = self._find(encoded, scope)
        if self.memories.embedder == embedders.PAPER:
            return encoded.text, candidates
        earlier, subject = self._subject(encoded, candidates, scope, history)
        return earlier or encoded.text, candidates if subject is None else subject

    def _talk(self, request: Request) -> Talk | None:
        """What the conversation is about: the memories that its last answer came from."""
        history, scope = request.history, request.scope
        earlier = anchor(history, self.memories.prior)
        answers = [turn["content"] for turn in history if turn.get("role") == "assistant"]
        if earlier is None or not answers:
            return None
        if request.subject is None:
            rows = sources(answers[-1], self.records)
        else:
            rows = self.memories.rows(request.subject)
        if not rows:  # in other words than a memory's, or in too few
            before = self._find(self._encode(earlier), scope)
            rows = [int(before.rows[0])] if 1 - before.p_none >= self.policy.threshold else []
        rows = [row for row in rows if scope.allows(self.records[row])]
        return Talk(rows[:_SOURCES], "\n".join(asked(history))) if rows else None

    def _subject(
        self,
        encoded: embed.EncodedQuestion,
        alone: gate.Candidates,
        scope: Scope,
        history: History,
    ) -> tuple[str | None, gate.Candidates | None]:
        """The earlier question that *encoded* leans on, and what it opened; None where it stands alone, as *alone* says."""
        assert self.memories.index is not None
        before = "\n".join(asked(history))
        if not history or not is_follow_up(encoded.question, before):
            return None, None
        names = encoded.question.names
        if names and 1 - alone.p_none >= self.policy.threshold:
            return None, None  # it names what it is about: a change of subject
        earlier = anchor(history, self.memories.prior)
        if earlier is None:
            return None, None
        subject = self._find(self._encode(earlier), scope)
        if 1 - subject.p_none < self.policy.threshold:
            return None, None
        best = int(subject.rows[0])
        if names and not self.memories.index.holds(best, encoded.question, names):
            return None, None  # it speaks of somebody that the memory does not know
        telling = telling_words(encoded.question, before)
        if points_weakly(encoded.question, before) and len(telling) > 1:
            if not any(self.memories.index.holds(best, encoded.question, [[word]]) for word in telling):
                return None, None  # "it" or "that" may stand for nothing, and nothing it says is in the memory
        return earlier, subject

    def _rerank(self, question: str, candidates: gate.Candidates) -> gate.Candidates:
        """*candidates*, those near each other told apart by how much likelier *question* makes what they say."""
        if self.memories.embedder == embedders.PAPER:
            return candidates
        gains = partial(self._likelihood.gains, question)
        return gate.rerank.rerank(
            candidates, self.policy, lambda row: self.memories.told(self.records[row]).text, gains
        )

    # -- from candidates to memories ----------------------------------------------------------

    def _shown(self, chosen: list[gate.Gated]) -> Opened:
        records = [self.records[o.index] for o in chosen]
        return Opened([_show(r, o.gate) for r, o in zip(records, chosen)], records)

    def _by_hand(self, scope: Scope) -> Opened:
        records = [self.bank.get(id) for id in scope.gates]
        check_kinds(records)
        return Opened([_show(r, float(g)) for r, g in zip(records, scope.gates.values())], records)


def _show(record: Record, weight: float) -> OpenedMemory:
    return OpenedMemory(record.id, record.heading, weight, record.state == "pending")
