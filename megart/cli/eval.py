"""megart eval: run a named evaluation suite and write its report; a killed run goes on where it was."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from ..eval.suites import SUITES
from . import common, progress, ui

EPILOG = (
    "suites:\n"
    + "\n".join(f"  {name:<11} {help}" for name, help in SUITES.items())
    + """

examples:
  megart eval quick
  megart eval paper --data wiki2024.jsonl wiki2024_compositional.jsonl mmlu.jsonl --partitions 5,6
  megart eval unrelated --data wiki2024.jsonl facts_mcq.jsonl --partitions 5 --limit 20 --general 50

The same command again goes on with a run that was stopped. Packages it needs: pip install 'megart[eval]'."""
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("suite", choices=SUITES, metavar="SUITE", help=f"one of {', '.join(SUITES)}")
    parser.add_argument(
        "--data",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="JSON Lines (memories, questions, choices, conflicts) or text; default: a small shipped set",
    )
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        default=Path("megart-eval"),
        help="where rows and banks are kept (default: megart-eval)",
    )
    parser.add_argument(
        "--bank",
        type=Path,
        metavar="DIR",
        help="a bank, or a folder of banks named like the partitions, to use and to add to",
    )
    parser.add_argument("--report", type=Path, metavar="DIR", help="where the report goes (default: WORK/report)")
    parser.add_argument("--partitions", type=_numbers, metavar="N,N", help="only these partitions")
    parser.add_argument("--limit", type=common.positive, metavar="N", help="at most N memories per partition")
    parser.add_argument("--questions", type=common.positive, metavar="N", help="at most N questions per memory")
    parser.add_argument(
        "--general",
        type=common.positive,
        metavar="N",
        default=100,
        help="at most N rows of general knowledge and of unrelated questions (default: 100)",
    )
    parser.add_argument(
        "--composites",
        type=common.positive,
        metavar="N",
        default=40,
        help="at most N questions about two memories, per partition (default: 40)",
    )
    parser.add_argument("--methods", type=_words, metavar="M,M", help="only these methods, e.g. base,mega,rag,seq-full")
    parser.add_argument(
        "--baseline-memories",
        type=common.positive,
        metavar="N",
        default=5,
        help="memories that the fine-tuning baselines learn (default: 5)",
    )
    parser.add_argument(
        "--counts",
        type=_numbers,
        metavar="N,N",
        default=(10, 30, 100, 300, 1000, 3000, 10000),
        help="bank sizes of the scale suite (default: 10,30,...,10000)",
    )
    parser.add_argument(
        "--first",
        type=common.positive,
        metavar="N",
        default=5,
        help="memories that the forgetting suite asks about (default: 5)",
    )
    parser.add_argument(
        "--max-tokens", type=common.positive, metavar="N", default=96, help="longest answer (default: 96)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of samples and bootstrap (default: 0)")
    parser.add_argument("--recipe", default="fast", help="how memories are taught (default: fast)")
    common.add_model(parser, "smollm2", hf=True)
    parser.add_argument("--device", type=common.device, metavar="D", help="torch device for teaching and fine-tuning")
    parser.add_argument(
        "--threads", type=common.positive, metavar="N", help="processor threads (default: the cores that are free)"
    )
    parser.add_argument(
        "--judge", metavar="URL", help="OpenAI-compatible endpoint that judges answers as well (key: $MEGART_JUDGE_KEY)"
    )
    parser.add_argument("--judge-model", metavar="NAME", default="default", help="the judge's model")
    parser.add_argument("--report-only", action="store_true", help="measure nothing; report what WORK holds so far")
    parser.add_argument("--estimate", action="store_true", help="only say how long it would take")
    common.add_json(parser, "print the paths of the report as JSON")


def run(args: argparse.Namespace) -> int:
    from .. import eval as evaluation

    options = evaluation.EvalOptions(
        suite=args.suite, files=tuple(args.data), work=args.work.expanduser(), bank=args.bank, report=args.report,
        limit=args.limit, questions=args.questions, general=args.general, composites=args.composites,
        partitions=args.partitions, methods=args.methods, seed=args.seed, recipe=args.recipe,
        max_tokens=args.max_tokens, baseline_memories=args.baseline_memories, counts=args.counts, first=args.first,
        model=args.model, hf=args.hf, device=args.device, threads=args.threads, judge=args.judge,
        judge_model=args.judge_model,
    )  # fmt: skip
    units, seconds = evaluation.estimate(options)
    if args.estimate:
        if args.json:
            ui.put_json({"units": units, "seconds": round(seconds, 1)})
        else:
            ui.put(f"{units} measurements, about {ui.duration(seconds)} left")
        return 0
    ui.say(f"{units} measurements, about {ui.duration(seconds)} left")
    with progress.Meter() as meter:

        def draw(tick: evaluation.Tick) -> None:
            meter.show(tick.done, tick.total, tick.seconds_left, tick.doing)

        results, page = evaluation.evaluate(options, draw, measure=not args.report_only)
    if args.json:
        ui.put_json({"results": str(results), "report": str(page)})
    else:
        ui.put(f"{results}\n{page}")
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[0-9]+(,[0-9]+)*", text):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected numbers with commas between, as 5,6")
    return tuple(map(int, text.split(",")))


def _words(text: str) -> tuple[str, ...]:
    from ..eval.baselines import LABELS as BASELINES
    from ..eval.methods import LABELS

    known = {**LABELS, **BASELINES}
    words = tuple(word for word in text.split(",") if word)
    for word in words:
        if word not in known:
            raise argparse.ArgumentTypeError(f"got the method {word!r}; expected some of {', '.join(known)}")
    return words
