"""Asking a bank: one prefill by the bare base, the gate, and an answer by base or mix.

Two contexts share the model. ``base`` never has an adapter: whatever its KV cache holds comes from
the bare base, so a shared prefix may always be reused. ``mix`` always has the slot: its cache is
dropped at every install, so no answer can come from another mix's KV.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import gate, prompts
from ..adapter import Adapter, read_adapter
from ..bank import Bank, Record
from ..errors import InputError
from ..models import Model, resolve_model
from . import embed
from .answer import Answer, OpenedMemory, Timings
from .context import Context
from .engine import Engine, Prompt
from .generate import Generation, greedy
from .slot import Slot

OnText = Callable[[str], None]
ANSWER_TOKENS = 128
RECALL_TOKENS = 768


@dataclass
class _Opened:
    """What the gate let through, with everything needed to answer from it."""

    shown: list[OpenedMemory]
    records: list[Record]


class Assistant:
    """Answers from a bank's memories, or as the bare base when none of them applies.

    ``model`` defaults to the bank's own base; a model with another hash is refused
    (BaseMismatchError). ``context_size`` is in tokens, ``threads`` defaults to the available cores,
    ``gpu_layers`` is llama.cpp's n_gpu_layers. One question at a time: calls from several threads
    wait for each other.
    """

    def __init__(
        self,
        bank: Bank,
        *,
        model: str | Path | Model | None = None,
        context_size: int = 2048,
        threads: int | None = None,
        gpu_layers: int = 0,
        policy: gate.GatePolicy | None = None,
        in_place: bool = True,
    ):
        base = resolve_model(model) if model is not None else bank.model
        bank.check_base(base)
        self.bank, self.policy = bank, policy or gate.GatePolicy()
        self.engine = Engine(base, threads=threads, gpu_layers=gpu_layers)
        watch = embed.tensor_name(embed.pick_layer(self.engine.n_layer))
        self.base = Context(self.engine, size=context_size, watch=watch)
        self.mix = Context(self.engine, size=context_size)
        self.slot = Slot(self.mix, in_place=in_place)
        self._encoder: Context | None = None
        self._whitening: embed.Whitening | None = None
        self._revision = -1
        self._records: list[Record] = []
        self._adapters: dict[tuple[str, str | None], Adapter] = {}

    def __enter__(self) -> Assistant:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model; the bank stays open."""
        self.slot.close()
        self.mix.close()
        self.base.close()
        if self._encoder:
            self._encoder.close()
        self.engine.close()

    def prepare(self) -> None:
        """Measure the gate's whitening now, unless the bank has it: the first question need not wait."""
        with self.engine.lock:
            if self._whitening is None:
                self._whitening = embed.bank_whitening(self.bank, self.encoder)

    # -- the user's verbs -------------------------------------------------------------------

    def ask(self, question: str, *, max_tokens: int = ANSWER_TOKENS, on_text: OnText | None = None) -> Answer:
        """Answer *question* directly. ``on_text`` receives the answer as it is decoded."""
        return self._answer("ask", question, prompts.ask, max_tokens, on_text)

    def recall(self, cue: str, *, max_tokens: int = RECALL_TOKENS, on_text: OnText | None = None) -> Answer:
        """Reconstruct the whole memory that *cue* (a question, a title, a few words) is about."""
        return self._answer("recall", cue, prompts.recall, max_tokens, on_text)

    def irag(self, question: str, *, max_tokens: int = ANSWER_TOKENS, on_text: OnText | None = None) -> Answer:
        """Recall first, then answer from what was recalled (the paper's iRAG)."""
        with self.engine.lock:
            first = self.recall(question)
            if not first.memories:
                return replace(self.ask(question, max_tokens=max_tokens, on_text=on_text), mode="irag")
            started = time.perf_counter()
            prompt = self._prompt(prompts.with_text(question, [first.text]), None)
            second = self._bare(prompt, max_tokens, on_text)
            times = replace(
                first.timings,
                first_token_ms=first.timings.total_ms + _ms(started, second.first_token),
                total_ms=first.timings.total_ms + _ms(started),
                prompt_tokens=first.timings.prompt_tokens + len(prompt.tokens),
                completion_tokens=first.timings.completion_tokens + len(second.tokens),
            )
            return Answer(second.text, "irag", first.memories, times, second.tokens, second.finish, first.text)

    def bare(self, question: str, *, max_tokens: int = ANSWER_TOKENS, on_text: OnText | None = None) -> Answer:
        """What the base answers without any memory, to the same prompt as :meth:`ask`."""
        started = time.perf_counter()
        with self.engine.lock:
            prompt = self._prompt(*_worded(question, prompts.ask))
            made = self._bare(prompt, max_tokens, on_text)
        times = Timings(
            first_token_ms=_ms(started, made.first_token),
            total_ms=_ms(started),
            prompt_tokens=len(prompt.tokens),
            completion_tokens=len(made.tokens),
        )
        return Answer(made.text, "bare", [], times, made.tokens, made.finish)

    def try_recall(
        self, adapter: Adapter, cue: str, *, activated: bool, prompt: str | None = None, max_tokens: int = RECALL_TOKENS
    ) -> str:
        """Recall with *adapter* alone at gate 1, whatever the gate would say (acceptance check)."""
        with self.engine.lock:
            rendered = self._prompt(prompt or prompts.recall(cue), None)
            self._load([adapter], [1.0], rendered, activated)
            return greedy(self.mix, max_tokens).text

    def key(self, text: str, title: str | None = None) -> np.ndarray:
        """The context key of a memory: float32 [n_embd], as stored in the bank."""
        with self.engine.lock:
            return embed.memory_key(self.encoder, text, title)

    @property
    def encoder(self) -> Context:
        """A context that stops at the embedding layer: a tenth of a prefill, and no answers."""
        if self._encoder is None:
            watch = embed.tensor_name(embed.pick_layer(self.engine.n_layer))
            self._encoder = Context(self.engine, size=self.base.size, watch=watch, stop=True)
        return self._encoder

    # -- one question -----------------------------------------------------------------------

    def _answer(
        self, mode: str, question: str, words: Callable[[str], str], limit: int, on_text: OnText | None
    ) -> Answer:
        if not question.strip():
            raise InputError("got an empty question; expected some words")
        with self.engine.lock:
            started = time.perf_counter()
            prompt = self._prompt(*_worded(question, words))
            embed.advance(self.base, prompt.body)
            prefilled = time.perf_counter()
            opened, times = self._open(prompt)
            ready = time.perf_counter()
            if not opened.shown:
                self.base.decode(prompt.opening)
                made = greedy(self.base, limit, on_text)
            elif any(m.pending for m in opened.shown):
                texts = [r.text for r in opened.records if r.state == "pending"]
                if mode == "recall":
                    made = self._read_out(texts[0], limit, on_text)
                else:
                    made = self._bare(self._prompt(prompts.with_text(question, texts), None), limit, on_text)
            else:
                times = self._mix(opened, prompt, times)
                made = greedy(self.mix, limit, on_text)
            times = replace(
                times,
                prefill_ms=_ms(started, prefilled) + _ms(ready, made.first_token) - times.mix_ms - times.install_ms,
                first_token_ms=_ms(started, made.first_token),
                total_ms=_ms(started),
                prompt_tokens=len(prompt.tokens),
                completion_tokens=len(made.tokens),
            )
        return Answer(made.text, mode, opened.shown, times, made.tokens, made.finish)

    def _prompt(self, content: str, span: tuple[int, int] | None) -> Prompt:
        return self.engine.prompt([{"role": "user", "content": content}], span)

    def _bare(self, prompt: Prompt, limit: int, on_text: OnText | None) -> Generation:
        embed.advance(self.base, prompt.body)
        self.base.decode(prompt.opening)
        return greedy(self.base, limit, on_text)

    def _read_out(self, text: str, limit: int, on_text: OnText | None) -> Generation:
        """The text of a pending memory as its recall: the model has nothing to reconstruct yet."""
        tokens = self.engine.tokenize(text, special=False)
        if len(tokens) > limit:
            text = self.engine.detokenize(tokens[:limit])
        if on_text:
            on_text(text)
        finish = "stop" if len(tokens) <= limit else "length"
        return Generation(text, tokens[:limit], time.perf_counter(), finish)

    def _open(self, prompt: Prompt) -> tuple[_Opened, Timings]:
        """Gate the prompt that ``base`` holds."""
        self._refresh()
        started = time.perf_counter()
        if not self._records:
            return _Opened([], []), Timings()
        assert self._whitening is not None
        query = self._whitening.query(embed.token_mean(self.base, prompt.span))
        embedded = time.perf_counter()
        chosen = gate.choose(query, self._keys, self.policy)
        records = [self._records[o.index] for o in chosen]
        # Activated and whole-prompt memories cannot share a mix: those of the best one's kind stay.
        keep = [j for j, r in enumerate(records) if _kind(r) == _kind(records[0])]
        total = sum(chosen[j].gate for j in keep)
        shown = [
            OpenedMemory(
                records[j].id, records[j].title or records[j].id, chosen[j].gate / total, records[j].state == "pending"
            )
            for j in keep
        ]
        times = Timings(embed_ms=_ms(started, embedded), gate_ms=_ms(embedded))
        return _Opened(shown, [records[j] for j in keep]), times

    def _mix(self, opened: _Opened, prompt: Prompt, times: Timings) -> Timings:
        started = time.perf_counter()
        adapters = [self._adapter(record) for record in opened.records]
        read = time.perf_counter()
        self._load(adapters, [m.gate for m in opened.shown], prompt, opened.records[0].activated)
        return replace(times, mix_ms=_ms(started, read), install_ms=self._install_ms)

    def _load(self, adapters: Sequence[Adapter], gates: Sequence[float], prompt: Prompt, activated: bool) -> None:
        """Install the mix and bring ``mix`` to the end of the prompt."""
        started = time.perf_counter()
        self.slot.install(adapters, gates)
        self.mix.truncate(0)  # what the previous mix left behind must never be read again
        self._install_ms = _ms(started)
        if activated:
            embed.advance(self.base, prompt.body)
            self.base.copy_to(self.mix)
            self.mix.decode(prompt.opening)
        else:
            self.mix.decode(prompt.tokens)

    def _adapter(self, record: Record) -> Adapter:
        name = (record.id, record.adapter_sha256)
        if name not in self._adapters:
            self._adapters[name] = read_adapter(self.bank.adapter_path(record.id))
        return self._adapters[name]

    def _refresh(self) -> None:
        """Notice what changed in the bank, also from another process."""
        revision = self.bank.revision
        if revision == self._revision:
            return
        ids, means = self.bank.keys()
        known = {record.id: record for record in self.bank.records()}
        self._records = [known[id] for id in ids if id in known]
        means = means[[i for i, id in enumerate(ids) if id in known]]
        if len(means):
            self.prepare()
        self._keys = self._whitening.keys(means) if len(means) and self._whitening else means
        names = {(r.id, r.adapter_sha256) for r in self._records}
        self._adapters = {k: v for k, v in self._adapters.items() if k in names}
        self._revision = revision


def _kind(record: Record) -> tuple[bool, bool]:
    return record.state == "pending", record.activated


def _worded(question: str, words: Callable[[str], str]) -> tuple[str, tuple[int, int]]:
    """The user's turn and where the user's own words stand in it."""
    content = words(question).strip()
    start = max(0, content.find(question.strip()))
    return content, (start, start + len(question.strip()))


def _ms(start: float, end: float | None = None) -> float:
    return ((end or time.perf_counter()) - start) * 1000.0
