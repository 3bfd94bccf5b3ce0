"""From texts with questions to a reader's file: ties the base's tokens (llama.cpp) and the training loop (torch) together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import prompts, readers
from .adapter import Adapter, read_adapter, write_adapter
from .architecture import check_teachable, scalar_keys
from .errors import DependencyError, InputError
from .models import Model
from .recipes import ReaderConfig

if TYPE_CHECKING:
    from .runtime.engine import Engine
    from .train.reader import ChoosingTask, ReadingTask, Step
    from .train.reader_data import Choice, Passage


def train(
    model: Model,
    rows: Iterable[Mapping[str, Any]],
    config: ReaderConfig,
    *,
    questions: int | None = None,
    device: str | None = None,
    start: Path | None = None,
    progress: Callable[[Step], None] = lambda _: None,
    resume: Path | None = None,
) -> bytes:
    """A reader for *model*, trained on *rows* (see ``train.reader_data``), as the bytes of its GGUF file.

    ``questions``: read so many at most; ``start``: the file of a reader to go on from. Raises DependencyError without
    torch, InputError where the rows give nothing to train on or *start* is no such reader.
    """
    check_teachable(model)
    try:
        from .train import reader, reader_data
        from .train.base import load_base
        from .train.export import to_adapter
        from .train.peft import permute_rows, permuted_heads, unpermute_rows
    except ImportError as error:
        raise DependencyError(
            f"training needs PyTorch and transformers ({error.name} is missing); run: pip install 'megart[train]'"
        ) from error
    from .runtime.engine import Engine

    engine = Engine(model)
    try:
        rows = list(rows)
        chosen = _up_to(questions, readings(engine, reader_data.passages(rows, config.seed)))
        choices = choosing(engine, reader_data.choices(rows))[:questions]
        nothing = (*engine.tokenize(readers.NOTHING, special=False), engine.end_of_turn)
        if not any(task.answers for task in choices) and all(
            answer == nothing for reading in chosen for _, answer in reading.pairs
        ):
            raise InputError("got no question whose answer stands in its text; expected rows with text and qa")
        first, opening = before(engine), engine.next_turn_opening
        architecture = engine.architecture
    finally:
        engine.close()
    header = scalar_keys(model.gguf)
    begun = None
    if start is not None:
        begun = dict(_begun(start, model, config).tensors)
        for name, (a, b) in begun.items():
            if heads := permuted_heads(name, architecture, header):
                begun[name] = a, unpermute_rows(b, heads)
    base = load_base(model, device=device)
    factors = reader.train(
        base, first, chosen, config,
        choices=choices, nothing=nothing[0], start=begun, progress=progress, resume=resume,
    )  # fmt: skip
    for name, (a, b) in factors.items():
        if heads := permuted_heads(name, architecture, header):
            factors[name] = a, permute_rows(b, heads)
    metadata = {
        "general.name": f"reader for {model.name}",
        readers.KIND_KEY: readers.KIND,
        readers.BASE_KEY: model.sha256,
    }
    adapter = to_adapter(
        factors, architecture=architecture, scale=config.scale, invocation_tokens=opening, metadata=metadata
    )
    return write_adapter(adapter.as_type("q8_0"))


def _begun(file: Path, model: Model, config: ReaderConfig) -> Adapter:
    """The reader in *file*, float32, checked to be one that training can go on from."""
    adapter = readers.checked(read_adapter(file), model.sha256, str(file))
    if adapter.rank != config.rank:
        raise InputError(f"{file} has rank {adapter.rank}; give --rank {adapter.rank}")
    return adapter.as_type("f32")


def _up_to(questions: int | None, every: list[ReadingTask]) -> list[ReadingTask]:
    """The first of *every*, with so many questions together."""
    if questions is None:
        return every
    totals = itertools.accumulate(len(reading.pairs) for reading in every)
    return [reading for reading, total in zip(every, totals) if total - len(reading.pairs) < questions]


def before(engine: Engine) -> tuple[int, ...]:
    """The tokens that every recitation follows: the recall cue, up to the memory's first word."""
    return engine.prompt([{"role": "user", "content": prompts.RECALL_CUE}]).tokens


def readings(engine: Engine, passages: Iterable[Passage]) -> list[ReadingTask]:
    """*passages* as tokens. Answers that do not begin and end with a token of their passage are left out."""
    from .train.reader import ReadingTask

    nothing = (*engine.tokenize(readers.NOTHING, special=False), engine.end_of_turn)
    tasks = []
    for passage in passages:
        tokens = engine.tokenize(passage.text, special=False)
        ends = engine.ends(tokens, passage.text)
        pairs = []
        for example in passage.examples:
            answer = nothing
            if example.span is not None:
                answer = _answer(engine, passage.text, tokens, ends, example.span)
                if not answer:
                    continue
            pairs.append((tuple(engine.next_turn(prompts.read(example.question, passage.title))), answer))
        if pairs:
            tasks.append(ReadingTask(tuple(tokens), tuple(pairs)))
    return tasks


def choosing(engine: Engine, choices: Iterable[Choice]) -> list[ChoosingTask]:
    """*choices* as tokens. One whose answer does not begin and end with a token of its text is left out."""
    from .train.reader import ChoosingTask, ReadingTask

    tasks = []
    for choice in choices:
        made = []
        for number, (text, title) in enumerate(choice.texts):
            tokens = engine.tokenize(text, special=False)
            answer: tuple[int, ...] = ()
            if number == 0 and choice.span is not None:
                answer = _answer(engine, text, tokens, engine.ends(tokens, text), choice.span)
                if not answer:
                    break
            question = tuple(engine.next_turn(prompts.read(choice.question, title)))
            made.append(ReadingTask(tuple(tokens), ((question, answer),)))
        if len(made) == len(choice.texts):
            tasks.append(ChoosingTask(tuple(made)))
    return tasks


def _answer(engine: Engine, text: str, tokens: list[int], ends: list[int], span: tuple[int, int]) -> tuple[int, ...]:
    """The tokens of *span* of *text* and the end of the turn; none where the span cuts through a token."""
    place = readers.covering(text, ends, *span)
    return (*tokens[place[0] : place[1]], engine.end_of_turn) if place else ()
