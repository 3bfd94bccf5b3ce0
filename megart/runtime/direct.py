"""Answers without reading: the paper's way, a recital on demand, iRAG, and the bare base.

Several memories that open answer one after the other, each under its own adapter at full strength:
a blend of two texts that are each to be said word for word says neither. The paper's gated sum is what
gates given by hand get, answers bound to a grammar, and ``combine="mix"``.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from ..bank import Record
from .ahead import ParallelPrefill
from .answer import Answer, Timings
from .draft import Draft
from .engine import Prompt
from .generate import Generation
from .job import Job
from .open_bank import Opened
from .recall import cue_prompt
from .request import RECALL_TOKENS
from .runtime import ms
from .sampling import SamplingOptions


@dataclass(frozen=True)
class _Turn:
    """Memories that answer together: one, a mix by ``gates``, or (``texts``) pending ones out of the prompt."""

    records: list[Record]
    gates: list[float]
    texts: list[str]


def direct(job: Job) -> Answer:
    """The answer of the memories that open, or of the bare base: modes direct, recall and bare, and ask where memories mix."""
    started = time.perf_counter()
    request = job.request
    prompt = job.prompt()
    opened, times = (Opened([], []), Timings()) if request.mode == "bare" else _gate(job, prompt)
    lost = 0.0
    if not opened.shown and request.mode == "recall":
        found, _ = job.bank.candidates(job.bank.encoder(request), prompt, request)
        return Answer("", "recall", timings=times, nearest=found.titles)
    if not opened.shown:
        begun = time.perf_counter()
        generation = job.plain(prompt)
    else:
        together = request.combine == "mix" or bool(request.scope.gates) or request.options.gbnf is not None
        opened = opened.of_one_kind() if together else opened
        generation, spent, begun, lost = _take(job, _turns(opened, together), prompt)
        times = replace(times, mix_ms=spent.mix_ms, install_ms=spent.install_ms)
    times = replace(
        times,
        prefill_ms=ms(begun, generation.first_token),
        first_token_ms=ms(started, generation.first_token),
        total_ms=ms(started),
        prompt_tokens=len(prompt.tokens),
        completion_tokens=len(generation.tokens),
        guessed_tokens=generation.guessed,
    )
    return Answer(
        generation.text, request.mode, opened.shown, times, generation.tokens, generation.finish, None, lost,
        opened.excluded,
    )  # fmt: skip


def irag(job: Job) -> Answer:
    """Recall first, then let the base answer with what was recalled in its prompt (the paper's iRAG)."""
    silent = replace(job, stream=job.stream.muted())
    first = direct(silent.asking(mode="recall", options=SamplingOptions(max_tokens=RECALL_TOKENS), limited=False))
    if first.finish == "cancelled":
        return replace(first, mode="irag", text="", tokens=[], recalled=first.text)
    if not first.memories:
        return replace(direct(job.asking(mode="direct")), mode="irag")
    started = time.perf_counter()
    second = job.from_texts([first.text])
    times = replace(
        first.timings,
        first_token_ms=first.timings.total_ms + ms(started, second.first_token),
        total_ms=first.timings.total_ms + ms(started),
        prompt_tokens=first.timings.prompt_tokens + second.prompt_tokens,
        completion_tokens=first.timings.completion_tokens + len(second.tokens),
    )
    return Answer(
        second.text, "irag", first.memories, times, second.tokens, second.finish, first.text,
        first.truncation, first.excluded,
    )  # fmt: skip


def _gate(job: Job, prompt: Prompt) -> tuple[Opened, Timings]:
    """Bring the prompt to the layer that the gate reads, and through it where an answer can go on from there."""
    runtime, bank = job.runtime, job.bank
    started = time.perf_counter()
    if job.request.mode != "recall" and not bank.reads_whole_prompts:
        runtime.prefixes.advance(prompt.body)
        return bank.open(runtime.base, prompt, job.request)
    encoder = bank.encoder(job.request)
    encoder.advance(prompt.body)
    passed = ms(started)
    opened, times = bank.open(encoder, prompt, job.request)
    return opened, replace(times, embed_ms=times.embed_ms + passed)


def _take(job: Job, turns: list[_Turn], prompt: Prompt) -> tuple[Generation, Timings, float, float]:
    """Every turn's answer, one after the other; of the first, its times and when its prefill began; the most that a mix
    lost."""
    request, runtime = job.request, job.runtime
    limit = request.options.max_tokens
    read_along = request.in_talk and request.mode in ("ask", "direct")
    along = ParallelPrefill(runtime.base, prompt.tokens, len(prompt.body)) if read_along else None
    between = "\n\n" if request.mode == "recall" else "\n"
    whole, spent, begun, lost = None, Timings(), 0.0, 0.0
    for turn in turns:
        if whole is not None:
            if whole.stopped or whole.finish == "cancelled" or any(s in between for s in request.options.stop):
                break
            if request.limited:
                left = limit - len(whole.tokens)
                if left < 1:
                    whole = replace(whole, finish="length")
                    break
                job = job.asking(options=replace(job.request.options, max_tokens=left))
            job.stream.put(between)
        generation, times, installed = _speak(job, turn, prompt, along)
        lost = max(lost, runtime.slot.truncation if turn.records else 0.0)
        if whole is None:
            whole, spent, begun = generation, times, installed
        else:
            text, tokens = whole.text + between + generation.text, whole.tokens + generation.tokens
            guessed = whole.guessed + generation.guessed
            whole = replace(generation, text=text, tokens=tokens, first_token=whole.first_token, guessed=guessed)
        if along:
            along.then([*generation.tokens, *runtime.engine.tokenize(between)], generation.guessed)
    assert whole is not None
    return whole, spent, begun, lost


def _speak(
    job: Job, turn: _Turn, prompt: Prompt, along: ParallelPrefill | None
) -> tuple[Generation, Timings, float]:
    """One turn's answer, the times of opening and installing, and when its prefill began."""
    request, runtime = job.request, job.runtime
    started = time.perf_counter()
    if turn.texts:
        generation = job.put("\n\n".join(turn.texts)) if request.mode == "recall" else job.from_texts(turn.texts)
        return generation, Timings(), started
    if request.mode == "recall" and len(turn.records) == 1:
        prompt = cue_prompt(runtime, job.bank, turn.records[0]) or prompt
    started = time.perf_counter()
    adapters = [job.bank.adapter(record) for record in turn.records]
    opened = time.perf_counter()
    names = [record.adapter_sha256 for record in turn.records]
    install_ms = runtime.load(adapters, turn.gates, prompt, turn.records[0].activated, names)
    times = Timings(mix_ms=ms(started, opened), install_ms=install_ms)

    def texts() -> list[list[int]]:
        end = runtime.engine.end_of_turn
        return [[*runtime.engine.tokenize(record.text, special=False), end] for record in turn.records]

    draft = Draft(texts, request.draft_max) if request.draft_max else None
    return job.generate(runtime.mix, draft, along), times, opened + install_ms / 1000


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
