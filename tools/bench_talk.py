"""Answers of learnt memories against the bare model's: the sections `recite` and `turns` of bench_ask.py.

The memories are the demo's six, learnt for this run by recipe fast, and asked the demo's questions: what is guessed
from a memory's text depends on what it says, so that noise would not do here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import numpy as np
from bench_ask import summary

from megart import memorize
from megart.bank import Bank, Memory
from megart.runtime.answer import Answer
from megart.runtime.assistant import Assistant
from megart.runtime.context import Context
from megart.runtime.draft import LONGEST

ROUNDS = 3
TALKS = 12  # conversations of each kind
TOKENS = 64  # of an answer at most
PAUSE = 0.8  # seconds


@contextlib.contextmanager
def learnt() -> Iterator[tuple[Bank, list[list[str]]]]:
    """A bank that has learnt the demo's memories, and the questions about each."""
    demo = json.loads(resources.files("megart").joinpath("data", "demo.json").read_text("utf-8"))["memories"]
    with tempfile.TemporaryDirectory() as folder, Bank.create(Path(folder) / "bank", "smollm2") as bank:
        memorize(bank, [Memory(row["text"], title=row["title"], id=row["id"]) for row in demo])
        yield bank, [[pair["q"] for pair in row["qa"]] for row in demo]


def recite(_: argparse.Namespace) -> dict:
    """Tokens per second after the first: the bare model, and memories with and without guessing.

    "in a conversation": the base reads along, so that the next turn need not wait for it.
    """
    with learnt() as (bank, questions), Assistant(bank) as assistant:
        assistant.runtime._worker._idle = lambda: False  # what is read while nobody asks is not of this section

        def ask(draft_max: int, in_talk: bool = False) -> Callable[[str], Answer]:
            def one(question: str) -> Answer:
                assistant.draft_max = draft_max
                asked = [{"role": "user", "content": question}] if in_talk else question
                return assistant.stream(asked, mode="direct", max_tokens=TOKENS).answer

            return one

        variants = {
            "bare": lambda question: assistant.bare(question, max_tokens=TOKENS),
            "one memory, token by token": ask(0),
            "one memory": ask(LONGEST),
            "one memory, in a conversation": ask(LONGEST, True),
            "one memory, at most 7 guesses": ask(7),
            "one memory, at most 31 guesses": ask(31),
        }
        measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in variants}
        same = []
        for round_ in range(ROUNDS + 1):
            for question in (q for of_one in questions for q in of_one):
                answers = {name: variant(question) for name, variant in variants.items()}
                if not round_ or any(len(x.tokens) < 8 for x in answers.values()):
                    continue
                if any(len(x.memories) != (name != "bare") for name, x in answers.items()):
                    continue
                if round_ == 1:  # greedy: the others say the same
                    same.append(answers["one memory"].tokens == answers["one memory, token by token"].tokens)
                for name, x in answers.items():
                    after = x.timings.total_ms - x.timings.first_token_ms
                    rate = 1000 * (len(x.tokens) - 1) / after
                    measured[name].append((rate, x.timings.total_ms, x.timings.guessed_tokens / len(x.tokens)))
        costs = assistant.on_model(lambda: batches(assistant.base))
    columns = {name: np.array(rows).T for name, rows in measured.items()}
    middle = {name: float(np.median(rates)) for name, (rates, _, _) in columns.items()}
    return {
        "tokens_per_second": {name: summary(rates) for name, (rates, _, _) in columns.items()},
        "of_bare": {name: round(value / middle["bare"], 2) for name, value in middle.items()},
        "whole_answer_ms": {name: summary(whole) for name, (_, whole, _) in columns.items()},
        "guessed": {name: round(float(guessed.mean()), 3) for name, (_, _, guessed) in columns.items()},
        "questions": len(columns["bare"][0]) // ROUNDS,
        "token_for_token_as_without_guessing": f"{sum(same)}/{len(same)}",
        "ms_a_token": costs,
    }


def batches(context: Context) -> dict[str, float]:
    """Milliseconds a token after a prompt of 100: alone, in batches with the logits of each, and read without them."""
    prompt, times = list(range(400, 500)), {}

    def spent(work: Callable[[list[int]], None], size: int) -> float:
        context.truncate(len(prompt))
        began = time.perf_counter()
        work(prompt[:size])
        context.synchronize()
        return 1000 * (time.perf_counter() - began) / size

    context.advance(prompt)
    for name, work, sizes in (("guessed", context.decode_every, (4, 8, 16, 32)), ("read", context.decode, (1, 8, 16))):
        for size in sizes:
            values = [spent(work, size) for _ in range(16)][1:]
            times["one alone" if size == 1 else f"{size} {name}"] = round(float(np.median(values)), 2)
    return times


def turns(_: argparse.Namespace) -> dict:
    """First token over five turns of one conversation, against the bare model, which keeps its cache.

    By the asker's clock, from the question to the first text. Both are asked at once and after pauses, each against
    its like: after a pause a processor is slower. Every conversation goes on from what it said itself.
    """
    ways = {"at once": 0.0, "after a pause": PAUSE}
    kinds = [(verb, way) for way in ways for verb in ("ask", "bare")]
    first: dict[tuple[str, str], list[list[float]]] = {kind: [] for kind in kinds}
    whole: dict[tuple[str, str], list[list[float]]] = {kind: [] for kind in kinds}
    with learnt() as (bank, questions), Assistant(bank) as assistant:
        for talk in range(TALKS + 1):  # the first conversation does not count
            for verb, way in kinds:
                wait_until_read(assistant)
                with assistant.engine.lock:
                    assistant.base.truncate(0)
                messages: list[dict[str, str]] = []
                spent, ended = [], []
                for turn in range(5):
                    messages.append({"role": "user", "content": questions[(talk + turn) % len(questions)][turn % 3]})
                    began, heard = time.perf_counter(), []
                    stream = assistant.stream(messages, mode=verb, max_tokens=TOKENS)
                    answer = stream.wait(lambda _, heard=heard: heard.append(time.perf_counter()))
                    ended.append((time.perf_counter() - began) * 1000)
                    spent.append(((heard or [time.perf_counter()])[0] - began) * 1000)
                    messages.append({"role": "assistant", "content": answer.text})
                    time.sleep(ways[way])
                first[verb, way].append(spent)
                whole[verb, way].append(ended)
    result = {}
    for way in ways:
        later = {verb: np.array(first[verb, way][1:])[:, 1:] for verb in ("ask", "bare")}
        medians = {verb: float(np.median(values)) for verb, values in later.items()}
        result[way] = {
            "turns_2_to_5_ms": {verb: summary(values.ravel()) for verb, values in later.items()},
            "by_turn_ms": {v: np.round(np.median(first[v, way][1:], axis=0), 1).tolist() for v in ("ask", "bare")},
            "whole_answers_ms": {v: summary(np.array(whole[v, way][1:]).ravel()) for v in ("ask", "bare")},
            "ratio": round(medians["ask"] / medians["bare"], 3),
        }
    return result


def wait_until_read(assistant: Assistant) -> None:
    """What one assistant reads while it is idle would take the next one's time."""
    for _ in range(500):
        with assistant.engine.lock:
            if assistant.runtime.idle_prefill.settled:
                return
        time.sleep(0.01)
    raise SystemExit("bench_talk: the conversation was not read")
