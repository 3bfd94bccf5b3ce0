"""One question answered: the prompt once through the bare base, the gate, and who speaks.

Two contexts share the model. ``base`` never has an adapter: whatever its KV cache holds comes from
the bare base, so a conversation's prefix stays valid whatever opens next. ``mix`` always has the slot.

Several memories that open answer one after the other, each under its own adapter at full strength:
a blend of two texts that are each to be said word for word says neither. The paper's gated sum is what
gates given by hand get, answers bound to a grammar, and a Responder with ``combine="mix"``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from .. import gate, prompts, readers, recipes
from ..adapter import CUE_KEY, Adapter
from ..bank import Bank, Record
from ..errors import BankError, InputError
from . import embed, hot
from .ahead import Along, Idle
from .answer import Answer, Timings
from .ask import STYLE, ask
from .context import Context
from .draft import Draft
from .engine import Engine, Prompt
from .fingerprint import Fingerprint
from .generate import Generation, Text, generate
from .opening import EVERYTHING, Found, Opened, Opening, Scope
from .reader import Reader
from .recite import Recital, of_text, recite
from .sampling import Options
from .slot import Slot
from .worker import Stream

Message = dict[str, str]
_log = logging.getLogger("megart")
ANSWER_TOKENS = 128
RECALL_TOKENS = 768
# A question and some of a memory; after a longer question there is no second look.
READER_TOKENS, READER_BATCH = 512, 64
# The user's turn of each mode.
MODES = {
    "ask": prompts.ask, "direct": prompts.ask, "bare": prompts.ask, "irag": prompts.ask, "recall": prompts.recall,
}  # fmt: skip
COMBINE = ("turns", "mix")


@dataclass(frozen=True)
class Question:
    """One question as it waits for the worker. Without ``limited`` max_tokens is of each memory's turn.

    ``on_known`` is told, from the model's thread, whether the question is known and the nearest titles, before the
    bare model speaks in a memory's place.
    """

    mode: str
    question: str
    history: list[Message]
    options: Options
    scope: Scope = EVERYTHING
    limited: bool = True
    in_talk: bool = False  # another turn is likely to follow
    style: str = STYLE
    strict: bool = False
    on_known: Callable[[bool | None, list[str]], None] | None = None

    def worded(self) -> tuple[str, tuple[int, int]]:
        """The user's turn and where the user's own words stand in it."""
        content = MODES[self.mode](self.question).strip()
        start = max(0, content.find(self.question.strip()))
        return content, (start, start + len(self.question.strip()))


@dataclass(frozen=True)
class _Turn:
    """Memories that answer together: one, a mix by ``gates``, or (``texts``) pending ones out of the prompt."""

    records: list[Record]
    gates: list[float]
    texts: list[str]


class Responder:
    """Owns the contexts, the slot and the gate of one bank. Not thread-safe: hold the engine's lock."""

    def __init__(
        self,
        bank: Bank,
        engine: Engine,
        *,
        context_size: int,
        policy: gate.GatePolicy,
        combine: str,
        in_place: bool,
        max_rank: int,
        slot: str,
        hot_bytes: int,
        draft_max: int,
    ):
        if combine not in COMBINE:
            raise InputError(f"got combine {combine!r}; expected one of {', '.join(COMBINE)}")
        self.bank, self.engine, self.combine, self.draft_max = bank, engine, combine, draft_max
        watch = embed.tensor_name(embed.pick_layer(engine.n_layer))
        with ExitStack() as undo:  # contexts have to be freed before the model is
            self.base = Context(engine, size=context_size, watch=watch)
            undo.callback(self.base.close)
            self.mix = Context(engine, size=context_size)
            undo.callback(self.mix.close)
            self.slot = Slot(self.mix, in_place=in_place, kind=slot, max_rank=max_rank)
            undo.pop_all()
        self._encoder: Context | None = None
        self._reranker: Context | None = None
        self._reader: Reader | None = None
        self.opening = Opening(bank, engine, lambda: self.encoder, lambda: self.reranker, policy)
        self._adapters = hot.HotAdapters(hot_bytes)
        self.idle_reader = Idle(self.base)
        self._told: dict[str, str] = {}
        self.opening.memories.tell = self._tell

    def close(self) -> None:
        self.opening.close()
        self.slot.close()
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        for context in self._contexts:
            context.close()
        self.engine.close()

    @property
    def encoder(self) -> Context:
        """A context that stops at the embedding layer: a tenth of a prefill, and no answers."""
        if self._encoder is None:
            watch = embed.tensor_name(embed.pick_layer(self.engine.n_layer))
            self._encoder = Context(self.engine, size=self.base.size, watch=watch, stop=True)
        return self._encoder

    @property
    def reranker(self) -> Context:
        """A small context of the bare base, for the gate's second look."""
        if self._reranker is None:
            self._reranker = Context(self.engine, size=min(self.base.size, READER_TOKENS), batch=READER_BATCH)
        return self._reranker

    @property
    def reader(self) -> Reader:
        """What answers from a recited text: made when it is first needed."""
        if self._reader is None:
            adapter = readers.find(self.engine.model.sha256)
            self._reader = Reader(self.engine, adapter, self.base.size, "reader")
        return self._reader

    @property
    def _contexts(self) -> list[Context]:
        reading = self._reader.context if self._reader else None
        return [context for context in (self.mix, self.base, self._encoder, self._reranker, reading) if context]

    # -- one question ---------------------------------------------------------------------------

    def respond(self, asked: Question, stream: Stream[Answer]) -> Answer:
        """The answer to *asked*; its text goes to *stream* as it is decoded."""
        before = self.engine.threads
        if self.engine.fit_threads() != before:
            for context in self._contexts:
                context.use_threads(self.engine.threads)
        self.idle_reader.expect(None)
        if asked.mode == "ask" and self.combine == "turns":
            made = ask(self, asked, stream)
        else:
            made = self._irag(asked, stream) if asked.mode == "irag" else self._answer(asked, stream)
        if made.finish != "cancelled":
            self.idle_reader.expect(lambda: self._so_far(asked, made))
        return made

    def _answer(self, asked: Question, stream: Stream[Answer]) -> Answer:
        started = time.perf_counter()
        prompt = self.prompt(*asked.worded(), asked.history)
        opened, times = (Opened([], []), Timings()) if asked.mode == "bare" else self._gate(prompt, asked)
        lost = 0.0
        if not opened.shown and asked.mode == "recall":
            return Answer("", "recall", timings=times, nearest=self.find(prompt, asked)[0].titles)
        if not opened.shown:
            made = self.plain(prompt, asked, stream)
        else:
            together = self.combine == "mix" or bool(asked.scope.gates) or asked.options.gbnf is not None
            opened = opened.of_one_kind() if together else opened
            turns = _turns(opened, together)
            made, first, lost = self._take(turns, prompt, asked, stream)
            times = replace(times, mix_ms=first.mix_ms, install_ms=first.install_ms)
        first_ms = ms(started, made.first_token)
        times = replace(
            times,
            prefill_ms=first_ms - times.embed_ms - times.gate_ms - times.rerank_ms - times.mix_ms - times.install_ms,
            first_token_ms=first_ms,
            total_ms=ms(started),
            prompt_tokens=len(prompt.tokens),
            completion_tokens=len(made.tokens),
            guessed_tokens=made.guessed,
        )
        return Answer(made.text, asked.mode, opened.shown, times, made.tokens, made.finish, None, lost, opened.left_out)

    def _take(
        self, turns: list[_Turn], prompt: Prompt, asked: Question, stream: Stream[Answer]
    ) -> tuple[Generation, Timings, float]:
        """Every turn's answer, one after the other; the times of the first, and the most that a mix lost."""
        limit = asked.options.max_tokens
        read_along = asked.in_talk and asked.mode in ("ask", "direct")
        along = Along(self.base, prompt.tokens, len(prompt.body)) if read_along else None
        between = "\n\n" if asked.mode == "recall" else "\n"
        whole, spent, lost = None, Timings(), 0.0
        for turn in turns:
            if whole is not None:
                if whole.stopped or whole.finish == "cancelled" or any(s in between for s in asked.options.stop):
                    break
                if asked.limited:
                    left = limit - len(whole.tokens)
                    if left < 1:
                        whole = replace(whole, finish="length")
                        break
                    asked = replace(asked, options=replace(asked.options, max_tokens=left))
                stream.put(between)
            made, times = self._speak(turn, prompt, asked, stream, along)
            lost = max(lost, self.slot.truncation if turn.records else 0.0)
            if whole is None:
                whole, spent = made, times
            else:
                text, tokens = whole.text + between + made.text, whole.tokens + made.tokens
                guessed = whole.guessed + made.guessed
                whole = replace(made, text=text, tokens=tokens, first_token=whole.first_token, guessed=guessed)
            if along:
                along.then([*made.tokens, *self.engine.tokenize(between)], made.guessed)
        assert whole is not None
        return whole, spent, lost

    def _speak(
        self, turn: _Turn, prompt: Prompt, asked: Question, stream: Stream[Answer], along: Along | None
    ) -> tuple[Generation, Timings]:
        if turn.texts:
            if asked.mode == "recall":
                return self.put("\n\n".join(turn.texts), asked.options, stream), Timings()
            return self.from_text(turn.texts, asked, stream), Timings()
        if asked.mode == "recall" and len(turn.records) == 1:
            prompt = self._cue(turn.records[0]) or prompt
        times = self._install(turn, prompt)

        def texts() -> list[list[int]]:
            end = self.engine.end_of_turn
            return [[*self.engine.tokenize(record.text, special=False), end] for record in turn.records]

        draft = Draft(texts, self.draft_max) if self.draft_max else None
        return self._generate(self.mix, asked, stream, draft, along), times

    def _cue(self, record: Record) -> Prompt | None:
        """What the memory was taught to answer with its text, whatever words called it up; None if unknown."""
        cue = recipes.cue_of(self.adapter(record).metadata.get(CUE_KEY), record)
        return None if cue is None else self.prompt(cue)

    def recite(self, record: Record, into: Context, cancelled: Callable[[], bool] = lambda: False) -> Recital:
        """Let *record* recite its text, and make *into* hold it.

        A memory that has no adapter, or a damaged one, is read from its text.
        """
        cue = None
        try:
            cue = self._cue(record) if record.state == "learnt" else None
        except BankError as error:
            _log.warning("%s is read from its text: %s", record.id, error)
        if cue is None:
            return self.encode(of_text(self.engine, record.text), into)
        self._install(_Turn([record], [1.0], []), cue)
        # The reader was trained on what the bare base makes of a text: the recital's own keys and values, of which the
        # upper layers' are the memory's, cost it 5 points of exact match (wiki2024 partition 6, n 144).
        return self.encode(recite(self.mix, record.text, RECALL_TOKENS, cancelled), into)

    def _tell(self, record: Record) -> str:
        """What *record*, whose text nobody holds, says of itself; "" where its adapter is damaged."""
        if record.id not in self._told:
            try:
                cue = self._cue(record)
                self._install(_Turn([record], [1.0], []), cue or self.prompt(prompts.RECALL_CUE))
            except BankError as error:
                _log.warning("%s says nothing: %s", record.id, error)
                return ""
            self._told[record.id] = recite(self.mix, "", RECALL_TOKENS).text
        return self._told[record.id]

    def encode(self, recital: Recital, into: Context) -> Recital:
        """Make *into* hold *recital* as the bare base reads it, after the recall cue."""
        self.base.advance((*self.prompt(prompts.RECALL_CUE).tokens, *recital.tokens))
        self.base.copy_to(into)
        return recital

    def plain(self, prompt: Prompt, asked: Question, stream: Stream[Answer]) -> Generation:
        """The bare base's answer."""
        embed.advance(self.base, prompt.body)
        self.base.decode(prompt.opening)
        return replace(self._generate(self.base, asked, stream), prompt_tokens=len(prompt.tokens))

    def from_text(self, texts: list[str], asked: Question, stream: Stream[Answer]) -> Generation:
        """The base's answer with *texts* in the prompt."""
        prompt = self.prompt(prompts.with_text(asked.question, texts), None, asked.history)
        return self.plain(prompt, asked, stream)

    def put(self, text: str, options: Options, stream: Stream[Answer]) -> Generation:
        """*text* as an answer, cut as *options* say; nothing is decoded."""
        tokens = self.engine.tokenize(text, special=False)
        kept = tokens[: options.max_tokens]
        if len(kept) < len(tokens):
            decoder = self.engine.decoder()
            text = "".join(decoder.decode(self.engine.piece(token)) for token in kept)
        said = Text(options.stop, stream.put)
        said.add(text, final=True)
        finish = "stop" if said.stopped or len(kept) == len(tokens) else "length"
        return Generation(said.text, kept, time.perf_counter(), finish, stopped=said.stopped)

    def _irag(self, asked: Question, stream: Stream[Answer]) -> Answer:
        silent = stream.muted()
        recalling = replace(asked, mode="recall", options=Options(max_tokens=RECALL_TOKENS), limited=False)
        first = self._answer(recalling, silent)
        if first.finish == "cancelled":
            return replace(first, mode="irag", text="", tokens=[], recalled=first.text)
        if not first.memories:
            return replace(self._answer(replace(asked, mode="direct"), stream), mode="irag")
        started = time.perf_counter()
        second = self.from_text([first.text], asked, stream)
        times = replace(
            first.timings,
            first_token_ms=first.timings.total_ms + ms(started, second.first_token),
            total_ms=first.timings.total_ms + ms(started),
            prompt_tokens=first.timings.prompt_tokens + second.prompt_tokens,
            completion_tokens=first.timings.completion_tokens + len(second.tokens),
        )
        return Answer(
            second.text, "irag", first.memories, times, second.tokens, second.finish, first.text,
            first.truncation, first.left_out,
        )  # fmt: skip

    def _generate(
        self,
        context: Context,
        asked: Question,
        stream: Stream[Answer],
        draft: Draft | None = None,
        along: Along | None = None,
    ) -> Generation:
        return generate(context, asked.options, stream.put, lambda: stream.is_cancelled, draft, along)

    def prompt(self, content: str, span: tuple[int, int] | None = None, history: Sequence[Message] = ()) -> Prompt:
        """*content* as the user's turn after *history*; ``span``: where the user's own words stand in it."""
        return self.engine.prompt([*history, {"role": "user", "content": content}], span)

    # -- gate and mix -----------------------------------------------------------------------------

    def refresh(self) -> None:
        """Notice what changed in the bank, also from another process."""
        if self.opening.memories.refresh() and len(self._adapters):
            self._adapters.keep_only({(r.id, r.adapter_sha256) for r in self.opening.records})

    def find(self, prompt: Prompt, asked: Question) -> tuple[Found, Timings]:
        """The memories to read for *prompt*: the shallow layers are run, nothing is decoded."""
        self.refresh()
        started = time.perf_counter()
        embed.advance(self.encoder, prompt.body)
        passed = ms(started)
        found, times = self.opening.candidates(self.encoder, prompt, asked.scope, asked.history)
        return found, replace(times, embed_ms=times.embed_ms + passed)

    def _gate(self, prompt: Prompt, asked: Question) -> tuple[Opened, Timings]:
        """Bring the prompt to the layer that the gate reads, and through it where an answer can go on from there."""
        self.refresh()
        started = time.perf_counter()
        if asked.mode != "recall" and not self.opening.reads_whole_prompts:
            embed.advance(self.base, prompt.body)
            return self.open(prompt, asked)
        embed.advance(self.encoder, prompt.body)
        passed = ms(started)
        opened, times = self.opening.open(self.encoder, prompt, asked.scope, asked.history)
        return opened, replace(times, embed_ms=times.embed_ms + passed)

    def open(self, prompt: Prompt, asked: Question | None = None) -> tuple[Opened, Timings]:
        """Gate the prompt that ``base`` holds."""
        self.refresh()
        scope, history = (asked.scope, asked.history) if asked else (EVERYTHING, [])
        return self.opening.open(self.base, prompt, scope, history)

    def _install(self, turn: _Turn, prompt: Prompt) -> Timings:
        started = time.perf_counter()
        adapters = [self.adapter(record) for record in turn.records]
        read = time.perf_counter()
        names = [record.adapter_sha256 for record in turn.records]
        install_ms = self.load(adapters, turn.gates, prompt, turn.records[0].activated, names)
        return Timings(mix_ms=ms(started, read), install_ms=install_ms)

    def load(
        self,
        adapters: Sequence[Adapter],
        gates: Sequence[float],
        prompt: Prompt,
        activated: bool,
        names: Sequence[str | None] = (),
    ) -> float:
        """Install the mix and bring ``mix`` to the end of the prompt; the milliseconds of the installing.

        ``names``: SHA-256 of each adapter's file, by which this mix will be known again.
        """
        started = time.perf_counter()
        mixed = None
        if names and all(names):
            mixed = Fingerprint(self.base.bare.base, tuple(zip(map(str, names), gates, strict=True)), activated)
        self.slot.install(adapters, gates, mixed)
        install_ms = ms(started)
        if activated:
            if self.mix.match(prompt.body, self.base.computes) < len(prompt.body):
                embed.advance(self.base, prompt.body)
                self.base.copy_to(self.mix)
            self.mix.truncate(len(prompt.body))
            self.mix.decode(prompt.opening)
        else:
            self.mix.advance(prompt.tokens, logits=True)
        return install_ms

    def adapter(self, record: Record) -> Adapter:
        """The adapter of *record*. Raises BankError, with the remedy, for a damaged one."""
        return self._adapters.get((record.id, record.adapter_sha256), lambda: self.bank.adapter(record.id))

    # -- between questions --------------------------------------------------------------------

    def idle(self) -> bool:
        """Let the base encode some of what was said, which will stand in the next prompt; whether there is more to do."""
        with self.engine.lock:
            return self.idle_reader.read()

    def _so_far(self, asked: Question, made: Answer) -> tuple[int, ...]:
        """The conversation up to *made* as tokens. Raises what the template raises."""
        said = [*asked.history, {"role": "user", "content": asked.worded()[0]}]
        return self.engine.prompt([*said, {"role": "assistant", "content": made.text}]).body


def _turns(opened: Opened, together: bool) -> list[_Turn]:
    """Who speaks, the likeliest first: every learnt memory for itself unless ``together``, pending ones as one."""
    texts = [record.text for record in opened.records if record.state == "pending"]
    turns: list[_Turn] = []
    for memory, record in zip(opened.shown, opened.records):
        if memory.pending:
            turns += [_Turn([], [], texts)] if texts else []
            texts = []
        elif together and turns:
            turns[0].records.append(record)
            turns[0].gates.append(memory.gate)
        else:
            turns.append(_Turn([record], [memory.gate if together else 1.0], []))
    return turns


def ms(start: float, end: float | None = None) -> float:
    """Milliseconds from *start* to *end*, or to now."""
    return ((end or time.perf_counter()) - start) * 1000.0
