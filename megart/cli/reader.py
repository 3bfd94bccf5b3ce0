"""megart reader: train the adapter that answers from what memories recite."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..models import DEFAULT_MODEL, resolve_model, user_cache_dir
from . import common, progress, ui

EPILOG = """\
The data are JSON Lines: text, qa [{"q": ..., "a": [...]}], perhaps title and unanswered [...], questions that the text
does not answer. An answer is used where it stands in the text word for word. Rows with an id may be named as "rivals"
[id, ...] of a question, in qa or as {"q", "rivals"} in unanswered: texts that a search takes for it, so that the reader
learns which one answers.

examples:
  megart reader train --data squad.jsonl notes.jsonl
  megart reader train --model ~/models/qwen2.5-0.5b.gguf --data notes.jsonl --questions 9000"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("train",), help="train a reader, which ask then uses for that model")
    common.add_model(parser, DEFAULT_MODEL, hf=True)
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE", help="texts with questions, JSON Lines")
    parser.add_argument("--from", dest="start", metavar="FILE", help="go on from this reader instead of from nothing")
    parser.add_argument("--out", metavar="FILE", help="where to write it (default: the user's data directory)")
    parser.add_argument("--questions", type=common.positive, metavar="N", help="read at most N questions")
    parser.add_argument("--epochs", type=common.positive, default=1, metavar="N", help="times (default: 1)")
    parser.add_argument("--rank", type=common.positive, default=8, metavar="N", help="rank of the adapter (default: 8)")
    parser.add_argument("--seed", type=common.whole, default=0, metavar="N", help="(default: 0)")
    parser.add_argument("--device", type=common.device, metavar="D", help="cpu or cuda (default: cuda where there is)")
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from ..readers import keep, own_path
    from ..recipes import ReaderConfig
    from ..train_reader import train

    model = resolve_model(args.model or DEFAULT_MODEL, args.hf)
    rows = [row for path in args.data for row in _rows(path)]
    config = ReaderConfig(rank=args.rank, epochs=args.epochs, seed=args.seed)
    resume = user_cache_dir() / "readers" / f"{model.sha256[:16]}.state"
    resume.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with progress.Meter() as meter:

        def show(step: Any) -> None:
            passed = time.monotonic() - started
            left = passed / step.number * (step.total - step.number)
            meter.show(step.number, step.total, left, f"loss {step.loss:.3f}")

        data = train(
            model, rows, config, questions=args.questions, device=args.device,
            start=Path(args.start).expanduser() if args.start else None, progress=show, resume=resume,
        )  # fmt: skip
    path = keep(data, Path(args.out).expanduser() if args.out else own_path(model.sha256))
    resume.unlink(missing_ok=True)
    if args.json:
        ui.put_json({"reader": str(path), "bytes": len(data), "base": model.sha256})
    else:
        ui.put(f"trained a reader for {model.name}: {path} ({ui.size(len(data))})")
    return 0


def _rows(path: str) -> list[dict]:
    """The rows of a file. Raises InputError with the line's number."""
    rows = []
    for number, line in enumerate(common.read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            _check(row)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f'{path}:{number}: expected an object with "text" and "qa" [{{"q", "a"}}]: {error}'
            ) from None
        rows.append(
            {**row, "qa": [{**qa, "a": [qa["a"]] if isinstance(qa["a"], str) else qa["a"]} for qa in row["qa"]]}
        )
    if not rows:
        raise InputError(f"{path} holds no rows; expected JSON Lines with text and qa")
    return rows


def _check(row: dict) -> None:
    if not (isinstance(row["text"], str) and isinstance(row["qa"], list)):
        raise TypeError("text or qa is of the wrong kind")
    if not isinstance(row.get("title") or "", str):
        raise TypeError("title is of the wrong kind")
    unanswered = row.get("unanswered") or []
    if not (isinstance(unanswered, list) and all(isinstance(q, (str, dict)) for q in unanswered)):
        raise TypeError("unanswered is no list of questions")
    choices = [q for q in unanswered if isinstance(q, dict)]
    for qa in [*row["qa"], *choices]:
        if not isinstance(qa["q"], str) or not isinstance(qa.get("rivals") or [], list):
            raise TypeError("a question or its rivals are of the wrong kind")
    for qa in row["qa"]:
        if not isinstance(qa["a"], (str, list)):
            raise TypeError("an answer is of the wrong kind")
