"""megart gate: which memories a question would open, and why; nothing is answered."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from . import common, ui

if TYPE_CHECKING:
    from ..runtime.found import Judged

EPILOG = """\
The score is the log odds against "no memory applies", and the columns after it are its parts: names
(found whole, less what is strange about them), words (how much of the question the memory holds), states
(likeness to the base's hidden states), meaning (likeness by the bank's embedder), against (what speaks for no
memory at all) and, where memories are near each other, reading (how much likelier the question makes what they
say). Where the keys are the paper's (megart rekey --embedder paper), the score is their inner product and has no
parts.

examples:
  megart gate "Where did Morwenna keep the lighthouse?"
  megart gate "And what was her goat called?" --history conversation.json
  megart gate - --json < questions.txt     one question a line, or JSON objects with "q"; one object a line back"""

_PARTS = {
    "names": ("names", "elsewhere", "broken_name"),
    "words": ("bm25", "pairs", "related", "mass", "rest"),
    "states": ("tokens", "new_tokens", "token_squares", "dense"),
    "meaning": ("meaning",),
    "against": ("against",),
    "reading": ("reading",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="QUESTION", help='the question; "-" reads one question a line')
    common.add_bank(parser, packs=True)
    common.add_model(parser, "the bank's own")
    common.add_scope(parser)
    parser.add_argument("--top", type=common.positive, default=5, metavar="N", help="candidates shown (default: 5)")
    parser.add_argument("--history", metavar="FILE", help='the conversation so far: a JSON list of {"role", "content"}')
    parser.add_argument(
        "--threads", type=common.positive, metavar="N", help="processor threads (default: the cores that are free)"
    )
    common.add_json(parser, "print one JSON object a question")


def run(args: argparse.Namespace) -> int:
    many = args.words == ["-"]
    questions = list(_lines(common.read_stdin())) if many else [(0, common.question(args.words, "question"), [])]
    history = _history(common.read_text(args.history), args.history) if args.history else []
    scope = common.scope(args)
    with common.open_bank(args) as bank:
        from ..runtime.assistant import Assistant
        from ..runtime.context import DecodeError

        with Assistant(bank, model=args.model, threads=args.threads) as assistant:
            for line, words, own in questions:
                try:
                    judged = assistant.gate(words, **scope, history=own or history)
                except DecodeError as error:
                    raise InputError(f"standard input:{line}: {error}" if many else str(error)) from None
                if args.json:
                    ui.put_json_line(_object(words, judged, args.top))
                else:
                    if many:
                        ui.put(ui.one_line(words))
                    _show(judged, args.top)
    return 0


def _lines(text: str) -> Iterator[tuple[int, str, list[dict[str, str]]]]:
    """(number of the line, question, history): plain, or JSON objects with "q" and perhaps "history"."""
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if not line:
            continue
        if not line.startswith("{"):
            yield number, line, []
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f'standard input:{number}: not JSON: {error}; expected an object with "q"') from None
        if not isinstance(row.get("q"), str) or not row["q"].strip():
            raise InputError(f'standard input:{number}: no question; expected an object with the string "q"')
        yield number, row["q"].strip(), _messages(row.get("history") or [], f"standard input:{number}")


def _history(text: str, name: str) -> list[dict[str, str]]:
    try:
        return _messages(json.loads(text), name)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{name}: not JSON: {error}") from None


def _messages(value: object, where: str) -> list[dict[str, str]]:
    if not isinstance(value, list) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    ):
        raise InputError(f'{where}: the history is not a list of messages; expected [{{"role": ..., "content": ...}}]')
    return value


def _object(words: str, judged: Judged, top: int) -> dict[str, Any]:
    scores, p = judged.candidates.scores, judged.candidates.p
    return {
        "q": words,
        "open": [{"id": id, "gate": round(gate, 4)} for id, gate in judged.opened],
        "top": [
            {"id": id, "score": round(float(scores[i]), 4), "p": round(float(p[i]), 4)}
            for i, id in enumerate(judged.ids[:top])
        ],
        "p_none": round(judged.candidates.p_none, 4),
        **({"read_as": dict(judged.candidates.read_as)} if judged.candidates.read_as else {}),
    }


def _show(judged: Judged, top: int) -> None:
    for word, meant in judged.candidates.read_as.items():
        ui.put(f'read "{word}" as "{meant}"')
    opened = dict(judged.opened)
    names = judged.candidates.names
    # A gate of one number (the paper's product) has no parts to show.
    groups = {head: group for head, group in _PARTS.items() if set(group) & set(names)}
    rows = []
    for i, id in enumerate(judged.ids[:top]):
        parts = dict(zip(names, judged.candidates.parts[i], strict=True))
        rows.append(
            [
                f"{opened[id]:.2f}" if id in opened else "-",
                f"{judged.candidates.p[i]:.3f}",
                f"{judged.candidates.scores[i]:+.2f}",
                *(f"{sum(parts.get(name, 0.0) for name in group):+.2f}" for group in groups.values()),
                id + (" (pending)" if judged.pending[i] else ""),
                judged.titles[i],
            ]
        )
    heads = ["gate", "p", "score", *groups, "id", "title"]
    if rows:
        ui.put_table(heads, rows, right=heads[:-2], shrink="title")
    verdict = f"opens {', '.join(f'{id} {gate:.2f}' for id, gate in judged.opened)}" if opened else "opens nothing"
    ui.put(f"p(no memory applies) = {judged.candidates.p_none:.3f}: {verdict}")
