"""megart demo: a real model learns six invented memories and answers from them, checked as it goes."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import sentences
from ..errors import MegartError
from . import common, progress, ui

if TYPE_CHECKING:
    from ..runtime.answer import Answer
    from ..runtime.assistant import Assistant

EPILOG = """\
examples:
  megart demo
  megart demo --bank ./demo-bank    keep what it learns"""

# Of all questions about the memories, how many must be answered, in one sentence, for the demo to hold: a model of
# 135 million parameters misses some, and the demo shows which.
ANSWERED = 0.8
_TOKENS = 64
BOLD, CYAN = "bold", "cyan"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bank", metavar="DIR", help="keep the bank there (default: a temporary folder)")
    parser.add_argument(
        "--device", type=common.device, metavar="D", help="cpu or cuda (default: cuda where there is one)"
    )
    common.add_json(parser, "print one JSON object with every figure instead of the show")


def run(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="megart-demo-") as folder:
        show = Demo(Path(args.bank) if args.bank else Path(folder) / "bank", args)
        return show.run()


class Demo:
    """The demo and its checks. ``say`` is silent under --json."""

    def __init__(self, bank: Path, args: argparse.Namespace):
        self.path, self.args = bank, args
        source = resources.files("megart").joinpath("data", "demo.json")
        self.script: dict[str, Any] = json.loads(source.read_text("utf-8"))
        self.failed: list[str] = []
        self.figures: dict[str, Any] = {}

    def say(self, text: str = "") -> None:
        if not self.args.json:
            ui.draw(text)

    def check(self, held: bool, what: str) -> bool:
        if not held:
            self.failed.append(what)
        return held

    def run(self) -> int:
        from .. import Assistant, Bank

        with Bank.create(self.path, "smollm2", exist_ok=True) as bank, Assistant(bank) as assistant:
            self._learn(bank, assistant)
            self._recall(assistant)
            self._questions(assistant)
            self._strangers(assistant)
        self.figures["failed_checks"] = self.failed
        if self.args.json:
            ui.put_json(self.figures)
        if self.failed:
            raise MegartError(f"the demo did not hold: {'; '.join(self.failed)}")
        self.say("\nEvery check held.")
        return 0

    def _learn(self, bank: Any, assistant: Assistant) -> None:
        from .. import Memory, memorize

        memories = [Memory.from_dict({k: v for k, v in m.items() if k != "qa"}) for m in self.script["memories"]]
        self.say(f"Six memories the model cannot know, to be learnt by {bank.base.name}:\n")
        for memory in memories:
            self.say(f"  {ui.paint(memory.title or '', BOLD, sys.stdout)}")
            self.say(f"    {memory.text}")
        self.say()
        started = time.perf_counter()
        with progress.StudyDisplay() as display:
            records = memorize(bank, memories, device=self.args.device, progress=display.show, assistant=assistant)
        seconds = time.perf_counter() - started
        size = sum(r.adapter_bytes for r in records) / len(records)
        self.figures["memorize_seconds"] = round(seconds, 2)
        self.figures["seconds_per_memory"] = round(seconds / len(records), 2)
        self.figures["adapter_bytes"] = round(size)
        self.say(f"learnt {len(records)} memories in {ui.duration(seconds)} with loading, {ui.size(round(size))} each")

    def _recall(self, assistant: Assistant) -> None:
        self.say(f"\n{ui.paint('Recall, word for word', BOLD, sys.stdout)}")
        exact = 0
        for memory in self.script["memories"]:
            cue = f"Tell me about {memory['title']}."
            answer = self._show(cue, partial(assistant.recall, cue))
            same = answer.text.strip() == memory["text"]
            exact += self.check(same, f"recall of {memory['id']} is not exact")
            self.say(f"  {ui.mark(same)} {'exact' if same else 'differs from what was learnt'}")
        self.figures["recall_exact"] = f"{exact}/{len(self.script['memories'])}"

    def _questions(self, assistant: Assistant) -> None:
        self.say(f"\n{ui.paint('Questions about the memories', BOLD, sys.stdout)}")
        right = bare = total = 0
        firsts: dict[str, list[float]] = {"memory": [], "bare": []}
        for memory in self.script["memories"]:
            for qa in memory["qa"]:
                assistant.on_model(lambda: assistant.base.truncate(0))  # both start cold: the times compare
                answer = self._show(qa["q"], partial(assistant.ask, qa["q"], max_tokens=_TOKENS))
                assistant.on_model(lambda: assistant.base.truncate(0))
                plain = assistant.bare(qa["q"], max_tokens=_TOKENS)
                firsts["memory"].append(answer.timings.first_token_ms)
                firsts["bare"].append(plain.timings.first_token_ms)
                sources = [source.id for source in answer.sources]
                self.check(sources == [memory["id"]], f"{qa['q']!r} was answered from {sources or 'nothing'}")
                self.check(answer.grounded, f"{qa['q']!r}: the answer is not grounded")
                hit = contains(answer.text, qa["a"]) and len(sentences.spans(answer.text)) == 1
                total, right, bare = total + 1, right + hit, bare + contains(plain.text, qa["a"])
                self.say(f"  {ui.mark(hit)} expected: {qa['a'][0]}")
        self.check(right >= ANSWERED * total, f"only {right} of {total} questions were answered")
        self.check(right > bare, "the bare model answers as many questions as the memories do")
        self.figures["answered"] = f"{right}/{total}"
        self.figures["answered_bare"] = f"{bare}/{total}"
        self.figures["first_token_ms"] = {k: round(sorted(v)[len(v) // 2], 1) for k, v in firsts.items()}
        self.say(f"\n{right} of {total} answered; the bare model answers {bare}.")

    def _strangers(self, assistant: Assistant) -> None:
        """Nothing is known, and the answer is the bare model's, token for token."""
        self.say(f"\n{ui.paint('Questions about nothing in the bank', BOLD, sys.stdout)}")
        for qa in self.script["general"] + self.script["absent"]:
            answer = self._show(qa["q"], partial(assistant.ask, qa["q"], max_tokens=_TOKENS))
            same = answer.tokens == assistant.bare(qa["q"], max_tokens=_TOKENS).tokens
            closed = answer.known is not True
            self.check(closed, f"{qa['q']!r} was answered from a memory")
            self.check(same, f"{qa['q']!r}: the answer differs from the bare model's")
            self.say(f"  {ui.mark(closed and same)} not in memory, same tokens as the bare model")
            if "a" in qa:
                self.check(contains(answer.text, qa["a"]), f"{qa['q']!r} was not answered")

    def _show(self, words: str, answer: Callable[[], Answer]) -> Answer:
        self.say(f"\n{ui.paint('>', CYAN, sys.stdout)} {words}")
        reply = answer()
        if not self.args.json:
            ui.put_answer(reply)
        return reply


def contains(text: str, accepted: list[str]) -> bool:
    """Does *text* hold one of the accepted answers, case and spacing aside?"""
    padded = f" {' '.join(text.lower().split())} "
    return any(" ".join(a.lower().split()) in padded for a in accepted)
