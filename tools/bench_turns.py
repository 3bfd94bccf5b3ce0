"""What two clients cost each other, and what a second bank costs: tokens read again a turn, private memory.

    python tools/bench_turns.py

Two clients take turns in long talks with the bare base, with the prefix cache and without. Then banks of one base are
opened one after the other, each with a runtime of its own or all on one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import megart
from megart.runtime.assistant import Assistant
from megart.runtime.runtime import Runtime

TURNS = 6
FILLER = "Tell me more about the weather, the harbour, the trains and the people of that town, please. " * 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", choices=("one", "shared", "apart"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        print(private_mb(args.memory))
        return
    measured = {"turns": {name: turns(budget) for name, budget in (("kept", None), ("dropped", 0))}}
    measured["private_mb"] = {
        name: statistics.median(
            float(subprocess.run([sys.executable, __file__, "--memory", name], capture_output=True, text=True).stdout)
            for _ in range(3)
        )
        for name in ("one", "shared", "apart")
    }
    print(json.dumps(measured, indent=1))


def turns(budget: int | None) -> dict[str, float]:
    """Tokens that the base reads and milliseconds to the first token, medians of the turns after the first."""
    with tempfile.TemporaryDirectory() as folder, megart.Bank.create(Path(folder) / "bank", "smollm2") as bank:
        with Assistant(bank) as assistant:
            if budget is not None:
                assistant.runtime.prefixes.budget = budget
            read: list[int] = []
            decode = assistant.base.decode
            assistant.base.decode = lambda tokens: read.append(len(tokens)) or decode(tokens)
            talks = [assistant.conversation([{"role": "user", "content": f"Client {n}. {FILLER}"}]) for n in (1, 2)]
            for talk in talks:
                talk.history.append({"role": "assistant", "content": "Gladly."})
            tokens, first = [], []
            for turn in range(TURNS):
                for talk in talks:
                    read.clear()
                    answer = talk.ask(f"Question {turn}: what else is there?", max_tokens=8)
                    tokens.append(sum(read) - len(answer.tokens) + 1)
                    first.append(answer.timings.first_token_ms)
                    time.sleep(0.3)  # the base reads ahead
            return {"prompt_tokens_read": statistics.median(tokens[2:]), "first_token_ms": statistics.median(first[2:])}


def private_mb(how: str) -> float:
    """Private memory of a process with one bank, or with two that share a runtime or have one each; each asked once."""
    with tempfile.TemporaryDirectory() as folder:
        banks = []
        for number in range(1 if how == "one" else 2):
            bank = megart.Bank.create(Path(folder) / f"bank{number}", "smollm2")
            megart.memorize(bank, [megart.Memory(f"Cupboard {number} holds the blue lamp.", id="lamp")], later=True)
            banks.append(bank)
        runtime = Runtime(banks[0].model) if how != "apart" else None
        assistants = [Assistant(bank, runtime=runtime) if runtime else Assistant(bank) for bank in banks]
        for assistant in assistants:
            assistant.ask("What does the cupboard hold?")
        rows = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return sum(int(row.split()[1]) for row in rows if row.startswith(("Private_Dirty", "Private_Clean"))) / 1024


if __name__ == "__main__":
    main()
