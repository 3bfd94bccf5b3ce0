"""Asking a bank: one prefill by the bare base, the gate, and an answer by base or mix.

Two contexts share the model. ``base`` never has an adapter: whatever its KV cache holds comes from
the bare base, so a conversation's prefix stays valid whatever opens next. ``mix`` always has the
slot. Both are owned by one worker thread; questions from any thread queue for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import gate, prompts
from ..adapter import Adapter
from ..bank import Bank, Record
from ..errors import InputError
from ..models import Model, resolve_model
from . import embed, hot
from .answer import Answer, Timings
from .context import Context
from .engine import Engine, Prompt
from .fingerprint import Fingerprint
from .generate import Generation, generate, greedy
from .opening import EVERYTHING, History, Judged, Opened, Opening, Scope
from .sampling import Options
from .slot import MAX_RANK, Slot
from .worker import Stream, Worker

OnText = Callable[[str], None]
Message = dict[str, str]
ANSWER_TOKENS = 128
RECALL_TOKENS = 768
# The user's turn of each mode, and its length unless told otherwise.
_MODES: dict[str, tuple[Callable[[str], str], int]] = {
    "ask": (prompts.ask, ANSWER_TOKENS),
    "bare": (prompts.ask, ANSWER_TOKENS),
    "irag": (prompts.recall, ANSWER_TOKENS),
    "recall": (prompts.recall, RECALL_TOKENS),
}
_IDLE_TOKENS = 32  # of a conversation, encoded at a time while no question waits


class Assistant:
    """Answers from a bank's memories, or as the bare base when none of them applies.

    ``model`` defaults to the bank's own base; a model with another hash is refused
    (BaseMismatchError). ``context_size`` is in tokens, ``threads`` defaults to the cores that other programs leave free,
    ``gpu_layers`` is llama.cpp's n_gpu_layers. ``hot_bytes`` bounds the adapters kept mapped;
    memories that need more rank together than ``max_rank`` are recompressed to it.

    Any thread may ask; the questions are answered one after the other. Each verb takes the options
    of :class:`~megart.runtime.sampling.Options` by name (``temperature``, ``stop``, ``grammar``...)
    and ``history``, the conversation so far: [{"role": "user", "content": "..."}, ...]; ``scope`` (see
    :class:`~megart.runtime.opening.Scope`) limits which memories may open. ``on_text``
    receives the answer as it is decoded, in the caller's thread.
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
        max_rank: int = MAX_RANK,
        hot_bytes: int = hot.BUDGET,
    ):
        base = resolve_model(model) if model is not None else bank.model
        bank.check_base(base)
        self.bank = bank
        self.engine = Engine(base, threads=threads, gpu_layers=gpu_layers)
        watch = embed.tensor_name(embed.pick_layer(self.engine.n_layer))
        self.base = Context(self.engine, size=context_size, watch=watch)
        self.mix = Context(self.engine, size=context_size)
        self.slot = Slot(self.mix, in_place=in_place, max_rank=max_rank)
        self._encoder: Context | None = None
        self.opening = Opening(bank, self.engine, lambda: self.encoder, policy or gate.GatePolicy())
        self._adapters = hot.HotAdapters(hot_bytes)
        self._coming: tuple[int, ...] = ()  # the conversation so far, for idle moments
        self._worker = Worker(self._idle)

    def __enter__(self) -> Assistant:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model, once the questions that wait are answered; the bank stays open."""
        self._worker.close()
        self.opening.close()
        self.slot.close()
        self.mix.close()
        self.base.close()
        if self._encoder:
            self._encoder.close()
        self.engine.close()

    def prepare(self) -> None:
        """Measure the gate's whitening now, unless the bank has it: the first question need not wait."""
        with self.engine.lock:
            self.opening.prepare()

    # -- the user's verbs -------------------------------------------------------------------

    def ask(
        self, question: str, *, history: Sequence[Message] = (), on_text: OnText | None = None, **options: Any
    ) -> Answer:
        """Answer *question* directly."""
        return self._submit("ask", question, history, options).wait(on_text)

    def recall(
        self, cue: str, *, history: Sequence[Message] = (), on_text: OnText | None = None, **options: Any
    ) -> Answer:
        """Reconstruct the whole memory that *cue* (a question, a title, a few words) is about."""
        return self._submit("recall", cue, history, options).wait(on_text)

    def irag(
        self, question: str, *, history: Sequence[Message] = (), on_text: OnText | None = None, **options: Any
    ) -> Answer:
        """Recall first, then answer from what was recalled (the paper's iRAG)."""
        return self._submit("irag", question, history, options).wait(on_text)

    def bare(
        self, question: str, *, history: Sequence[Message] = (), on_text: OnText | None = None, **options: Any
    ) -> Answer:
        """What the base answers without any memory, to the same prompt as :meth:`ask`."""
        return self._submit("bare", question, history, options).wait(on_text)

    def chat(self, messages: Sequence[Message], *, on_text: OnText | None = None, **options: Any) -> Answer:
        """:meth:`ask` the last message, a user's, after the others (a system prompt may come first)."""
        return self.stream(messages, **options).wait(on_text)

    def stream(
        self, question: str | Sequence[Message], *, mode: str = "ask", history: Sequence[Message] = (), **options: Any
    ) -> Stream[Answer]:
        """Queue *question* (or messages, the last one a user's) and return at once.

        Iterate over what comes back for the text as it is decoded; its ``answer`` is the whole one.
        ``mode``: "ask", "recall", "irag" or "bare".
        """
        if mode not in _MODES:
            raise InputError(f"got the mode {mode!r}; expected one of {', '.join(_MODES)}")
        if not isinstance(question, str):
            messages = [*question]
            if not messages or messages[-1].get("role") != "user":
                raise InputError('the last message must be the user\'s: {"role": "user", "content": ...}')
            history, question = [*history, *messages[:-1]], messages[-1].get("content", "")
        return self._submit(mode, question, history, options)

    def _submit(self, mode: str, question: str, history: Sequence[Message], given: dict[str, Any]) -> Stream[Answer]:
        _check_messages([*history, {"role": "user", "content": question}])
        if not question.strip():
            raise InputError("got an empty question; expected some words")
        scope = given.pop("scope", EVERYTHING)
        options = Options.of(_MODES[mode][1], given)
        asked = _Question(mode, question, [*history], options, scope)

        def run(stream: Stream[Answer]) -> Answer:
            with self.engine.lock:
                self._fit_threads()
                self._coming = ()
                made = self._irag(asked, stream) if mode == "irag" else self._answer(asked, stream)
                if history and made.finish != "cancelled":
                    self._expect(asked, made)
                return made

        return self._worker.submit(run)

    def try_recall(
        self, adapter: Adapter, cue: str, *, activated: bool, prompt: str | None = None, max_tokens: int = RECALL_TOKENS
    ) -> str:
        """Recall with *adapter* alone at gate 1, whatever the gate would say (acceptance check)."""
        with self.engine.lock:
            rendered = self._prompt(prompt or prompts.recall(cue), None)
            self._load([adapter], [1.0], rendered, activated)
            return greedy(self.mix, max_tokens).text

    def try_lead(self, adapter: Adapter, cue: str, text: str, *, activated: bool, prompt: str | None = None) -> float:
        """How surely :meth:`try_recall` would give *text*: the smallest lead of its tokens, in logits.

        All tokens are read in one pass, each after the right ones before it: where every lead is well
        above the rounding between one pass and token by token, greedy decoding cannot leave the text.
        """
        with self.engine.lock:
            rendered = self._prompt(prompt or prompts.recall(cue), None)
            self._load([adapter], [1.0], rendered, activated)
            meant = [*self.engine.tokenize(text, special=False), self.engine.end_of_turn]
            rows = [self.mix.logits()[None]]
            for start in range(0, len(meant) - 1, self.mix.batch):
                rows.append(self.mix.decode_every(meant[start : min(start + self.mix.batch, len(meant) - 1)]))
            return min(_lead(row, token) for row, token in zip(np.concatenate(rows), meant, strict=True))

    def key(self, text: str, title: str | None = None) -> np.ndarray:
        """The context key of a memory by the bank's embedder: float32 [D], as stored in the bank."""
        with self.engine.lock:
            return self.opening.embedder.memory(text, title)

    def rekey(self, embedder: str | None = None, *, on_progress: Callable[[int, int], None] | None = None) -> str:
        """Make the keys and evidence of all memories anew, by *embedder* or the bank's own; returns its name."""
        with self.engine.lock:
            return self.opening.rekey(embedder, on_progress)

    def gate(self, question: str, *, scope: Scope = EVERYTHING, history: History = ()) -> Judged:
        """What the gate makes of *question*: the shallow layers are run, nothing is answered."""
        if not question.strip():
            raise InputError("got an empty question; expected some words")
        with self.engine.lock:
            self._refresh()
            return self.opening.judge(question.strip(), scope, history)

    @property
    def encoder(self) -> Context:
        """A context that stops at the embedding layer: a tenth of a prefill, and no answers."""
        if self._encoder is None:
            watch = embed.tensor_name(embed.pick_layer(self.engine.n_layer))
            self._encoder = Context(self.engine, size=self.base.size, watch=watch, stop=True)
        return self._encoder

    # -- one question, in the worker's thread --------------------------------------------------

    def _answer(self, asked: _Question, stream: Stream[Answer]) -> Answer:
        started = time.perf_counter()
        prompt = self._prompt(*asked.worded(), asked.history)
        opened, times = (Opened([], []), Timings()) if asked.mode == "bare" else self._gate(prompt, asked)
        if not opened.shown:
            embed.advance(self.base, prompt.body)
            self.base.decode(prompt.opening)
            made = self._generate(self.base, asked, stream)
        elif any(m.pending for m in opened.shown):
            texts = [r.text for r in opened.records if r.state == "pending"]
            if asked.mode == "recall":
                made = self._read_out(texts[0], asked.options.max_tokens, stream.put)
            else:
                made = self._from_text(texts, asked, stream)
        else:
            times = self._mix(opened, prompt, times)
            made = self._generate(self.mix, asked, stream)
        first = _ms(started, made.first_token)
        times = replace(
            times,
            prefill_ms=first - times.embed_ms - times.gate_ms - times.mix_ms - times.install_ms,
            first_token_ms=first,
            total_ms=_ms(started),
            prompt_tokens=len(prompt.tokens),
            completion_tokens=len(made.tokens),
        )
        lost = self.slot.truncation if times.install_ms else 0.0
        return Answer(made.text, asked.mode, opened.shown, times, made.tokens, made.finish, None, lost, opened.left_out)

    def _gate(self, prompt: Prompt, asked: _Question) -> tuple[Opened, Timings]:
        """Bring the prompt to the layer that the gate reads, and through it where an answer can go on from there."""
        self._refresh()
        started = time.perf_counter()
        if not self.opening.reads_whole_prompts:
            embed.advance(self.base, prompt.body)
            return self._open(prompt, asked.scope, asked.history)
        embed.advance(self.encoder, prompt.body)
        passed = _ms(started)
        opened, times = self.opening.open(self.encoder, prompt, asked.scope, asked.history)
        return opened, replace(times, embed_ms=times.embed_ms + passed)

    def _irag(self, asked: _Question, stream: Stream[Answer]) -> Answer:
        silent: Stream[Answer] = Stream(lambda _: None)  # type: ignore[arg-type, return-value]
        recalling = replace(asked, mode="recall", options=Options(max_tokens=RECALL_TOKENS))
        first = self._answer(recalling, silent)
        if not first.memories:
            return replace(self._answer(replace(asked, mode="ask"), stream), mode="irag")
        started = time.perf_counter()
        second = self._from_text([first.text], asked, stream)
        times = replace(
            first.timings,
            first_token_ms=first.timings.total_ms + _ms(started, second.first_token),
            total_ms=first.timings.total_ms + _ms(started),
            prompt_tokens=first.timings.prompt_tokens + second.prompt_tokens,
            completion_tokens=first.timings.completion_tokens + len(second.tokens),
        )
        return Answer(second.text, "irag", first.memories, times, second.tokens, second.finish, first.text)

    def _from_text(self, texts: list[str], asked: _Question, stream: Stream[Answer]) -> Generation:
        """The base's answer with *texts* in the prompt."""
        prompt = self._prompt(prompts.with_text(asked.question, texts), None, asked.history)
        embed.advance(self.base, prompt.body)
        self.base.decode(prompt.opening)
        return replace(self._generate(self.base, asked, stream), prompt_tokens=len(prompt.tokens))

    def _fit_threads(self) -> None:
        before = self.engine.threads
        if self.engine.fit_threads() != before:
            for context in filter(None, (self.base, self.mix, self._encoder)):
                context.use_threads(self.engine.threads)

    def _generate(self, context: Context, asked: _Question, stream: Stream[Answer]) -> Generation:
        return generate(context, asked.options, stream.put, lambda: stream.is_cancelled)

    def _prompt(self, content: str, span: tuple[int, int] | None, history: Sequence[Message] = ()) -> Prompt:
        return self.engine.prompt([*history, {"role": "user", "content": content}], span)

    # -- between questions --------------------------------------------------------------------

    def _expect(self, asked: _Question, made: Answer) -> None:
        """The conversation goes on: what was just said will stand in the next prompt."""
        said = [*asked.history, {"role": "user", "content": asked.worded()[0]}]
        said.append({"role": "assistant", "content": made.text})
        tokens = self.engine.prompt(said).body
        if len(tokens) <= self.base.size:
            self._coming = tokens

    def _idle(self) -> bool:
        """Let the base encode some of what was said; whether there is more to do."""
        with self.engine.lock:
            done = self.base.match(self._coming, self.base.computes)
            left = len(self._coming) - done
            if left < 2:  # never one token alone, see Context.decode
                return False
            upto = len(self._coming) if left < 2 * _IDLE_TOKENS else done + _IDLE_TOKENS
            embed.advance(self.base, self._coming[:upto])
            return upto < len(self._coming)

    def _read_out(self, text: str, limit: int, on_text: OnText | None) -> Generation:
        """The text of a pending memory as its recall: the model has nothing to reconstruct yet."""
        tokens = self.engine.tokenize(text, special=False)
        if len(tokens) > limit:
            text = self.engine.detokenize(tokens[:limit])
        if on_text:
            on_text(text)
        finish = "stop" if len(tokens) <= limit else "length"
        return Generation(text, tokens[:limit], time.perf_counter(), finish)

    def _open(self, prompt: Prompt, scope: Scope = EVERYTHING, history: History = ()) -> tuple[Opened, Timings]:
        """Gate the prompt that ``base`` holds."""
        self._refresh()
        return self.opening.open(self.base, prompt, scope, history)

    def _mix(self, opened: Opened, prompt: Prompt, times: Timings) -> Timings:
        started = time.perf_counter()
        adapters = [self._adapter(record) for record in opened.records]
        read = time.perf_counter()
        names = [record.adapter_sha256 for record in opened.records]
        self._load(adapters, [m.gate for m in opened.shown], prompt, opened.records[0].activated, names)
        return replace(times, mix_ms=_ms(started, read), install_ms=self._install_ms)

    def _load(
        self,
        adapters: Sequence[Adapter],
        gates: Sequence[float],
        prompt: Prompt,
        activated: bool,
        names: Sequence[str | None] = (),
    ) -> None:
        """Install the mix and bring ``mix`` to the end of the prompt.

        ``names``: SHA-256 of each adapter's file, by which this mix will be known again.
        """
        started = time.perf_counter()
        mixed = None
        if names and all(names):
            mixed = Fingerprint(self.base.bare.base, tuple(zip(map(str, names), gates, strict=True)), activated)
        self.slot.install(adapters, gates, mixed)
        self._install_ms = _ms(started)
        if activated:
            embed.advance(self.base, prompt.body)
            if self.mix.match(prompt.body, self.base.computes) < len(prompt.body):
                self.base.copy_to(self.mix)
            self.mix.truncate(len(prompt.body))
            self.mix.decode(prompt.opening)
        else:
            self.mix.advance(prompt.tokens, logits=True)

    def _adapter(self, record: Record) -> Adapter:
        return self._adapters.get((record.id, record.adapter_sha256), self.bank.adapter_path(record.id))

    def _refresh(self) -> None:
        """Notice what changed in the bank, also from another process."""
        if self.opening.refresh():
            self._adapters.keep_only({(r.id, r.adapter_sha256) for r in self.opening.records})


@dataclass(frozen=True)
class _Question:
    """One question as it waits for the worker."""

    mode: str
    question: str
    history: list[Message]
    options: Options
    scope: Scope = EVERYTHING

    def worded(self) -> tuple[str, tuple[int, int]]:
        """The user's turn and where the user's own words stand in it."""
        content = _MODES[self.mode][0](self.question).strip()
        start = max(0, content.find(self.question.strip()))
        return content, (start, start + len(self.question.strip()))


def _check_messages(messages: Sequence[Message]) -> None:
    for message in messages:
        if not (
            isinstance(message, dict)
            and message.get("role") in ("system", "user", "assistant")
            and isinstance(message.get("content"), str)
        ):
            raise InputError(
                f'got the message {message!r}; expected {{"role": "system", "user" or "assistant", "content": text}}'
            )


def _lead(logits: np.ndarray, token: int) -> float:
    """The logit of *token* above the best other one's."""
    rivals = np.delete(logits, token)
    return float(logits[token] - rivals.max())


def _ms(start: float, end: float | None = None) -> float:
    return ((end or time.perf_counter()) - start) * 1000.0
