"""Memorizing: from text to a committed memory, accepted by the runtime on the exported file.

Ties the teaching engine (torch) to the runtime (llama.cpp) and the bank; heavy imports happen only
when something is to be taught.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import recipes
from .adapter import CUE_KEY, read_adapter, write_adapter
from .architecture import check_teachable
from .bank import Bank, Memory, Record
from .errors import AdapterError, DependencyError, InputError
from .models import Model, resolve_model
from .plan import ATTEMPTS, SPLIT, Plan, commit, plan, unlearnt
from .recipes import Recipe
from .verbatim import recited_share

if TYPE_CHECKING:
    from .runtime.assistant import Assistant
    from .train.trainer import Result, Task


@dataclass(frozen=True)
class Progress:
    """What ``memorize`` reports: ``state`` is "loading", "studying", "learnt", "again", "failed" or "saved".

    ``done`` of ``total`` memories are committed; ``step`` and ``loss`` are those of memory ``id``.
    """

    state: str
    done: int
    total: int
    id: str = ""
    title: str = ""
    step: int = 0
    loss: float = 0.0
    seconds: float = 0.0


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class TeachOptions:
    """How a run teaches: by which recipe, on which torch device (None: CUDA where there is one), and who is told."""

    recipe: Recipe
    device: str | None = None
    progress: OnProgress | None = None

    def tell(self, event: Progress) -> None:
        if self.progress is not None:
            self.progress(event)


def memorize(
    bank: Bank,
    memories: Iterable[Memory],
    *,
    recipe: str | Recipe = "fast",
    device: str | None = None,
    model: str | Path | Model | None = None,
    progress: OnProgress | None = None,
    replace_existing: bool = False,
    assistant: Assistant | None = None,
    later: bool = False,
) -> list[Record]:
    """Teach *memories* and commit each to *bank* as soon as the runtime recalls it.

    A memory already in the bank with the same text is passed over, so an interrupted run can be
    repeated. ``device`` is a torch device, default CUDA where there is one. With ``later`` nothing is
    taught and torch is not needed: text and key are committed in the state "pending", and the memory
    answers from its text until :func:`learn` has taught it. Returns the records of all memories given. Raises
    InputError (same id, other text), DependencyError (torch missing), BaseMismatchError, and MemorizeError at the end
    when some memories could not be learnt; the others are in the bank by then.
    """
    options = TeachOptions(recipe_of(recipe), device, progress)
    bank.remove_expired()
    todo = plan(bank, memories, replace_existing)
    if todo.memories:
        bank.check_writable()
    base = resolve_model(model) if model is not None else None
    if later:
        _save(bank, todo, replace_existing, options, base, assistant)
    elif todo.memories:
        Teacher(bank, options, base or bank.model, assistant).teach(todo.memories, todo.over)
    return [record for id in todo.order if (record := bank.find(id))]


def learn(
    bank: Bank,
    *,
    limit: int | None = None,
    recipe: str | Recipe = "fast",
    device: str | None = None,
    model: str | Path | Model | None = None,
    progress: OnProgress | None = None,
    assistant: Assistant | None = None,
) -> list[Record]:
    """Teach the memories of *bank* that are pending, the oldest first, at most ``limit`` of them.

    Each is committed as it is learnt, so an interrupted run can be repeated. Returns the records of
    those it taught; arguments and errors are those of :func:`memorize`.
    """
    pending = [record.memory for record in bank.records("pending")]
    return memorize(
        bank, pending[:limit], recipe=recipe, device=device, model=model, progress=progress, assistant=assistant
    )


def _save(
    bank: Bank,
    todo: Plan,
    again: bool,
    options: TeachOptions,
    base: Model | None,
    assistant: Assistant | None,
) -> None:
    """Commit what is to be saved as pending."""
    from .later import save_pending

    memories = [m for m in todo.memories if again or todo.over[m.id or ""] is None]
    if memories:
        save_pending(
            bank,
            memories,
            over=todo.over,
            model=base,
            assistant=assistant,
            on_loading=lambda: options.tell(Progress("loading", 0, len(memories))),
            on_saved=lambda memory, seconds, done, total: options.tell(
                Progress("saved", done, total, memory.id or "", memory.title or "", seconds=seconds)
            ),
        )


def recipe_of(recipe: str | Recipe) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in recipes.RECIPES:
        raise InputError(f"got recipe {recipe!r}; expected one of {', '.join(recipes.RECIPES)}")
    return recipes.RECIPES[recipe]


class Teacher:
    """One run of teaching; keeps the frozen base and the runtime loaded, *assistant* where one is given."""

    def __init__(self, bank: Bank, options: TeachOptions, base: Model, assistant: Assistant | None = None):
        self.bank, self.options = bank, options
        self._done = self._total = 0
        self._over: Mapping[str, Memory | None] = {}
        self._changed: list[str] = []
        bank.check_base(base)
        check_teachable(base)
        self._base_sha256 = base.sha256
        self._report("loading")
        try:
            from .train.base import load_base
        except ImportError as error:
            raise DependencyError(
                f"teaching needs PyTorch and transformers ({error.name} is missing); run: pip install 'megart[train]', "
                "or save without teaching: megart memorize --later"
            ) from error
        from .runtime.assistant import Assistant

        self._owned = assistant is None
        self._assistant = assistant or Assistant(bank, model=base)
        try:
            self._assistant.prepare()
            self._judge = self._assistant.acceptance
            self._base = load_base(base, device=options.device)
        except BaseException:
            if self._owned:
                self._assistant.close()
            raise

    def _report(
        self, state: str, memory: Memory | None = None, step: int = 0, loss: float = 0.0, seconds: float = 0.0
    ) -> None:
        id, title = (memory.id or "", memory.title or "") if memory else ("", "")
        self.options.tell(Progress(state, self._done, self._total, id, title, step, loss, seconds))

    def teach(self, memories: list[Memory], over: Mapping[str, Memory | None] | None = None) -> None:
        """Teach and commit; memories that fail go round again with more capacity.

        ``over``: what each may replace, by id (see :class:`Plan`); by default what the bank holds now.
        """
        self._total = len(memories)
        self._over = over or {m.id or "": (r.memory if (r := self.bank.find(m.id or "")) else None) for m in memories}
        self._changed = []
        waiting, recipe = memories, self.options.recipe
        try:
            for attempt in range(ATTEMPTS):
                waiting = self._round(waiting, recipe, last=attempt == ATTEMPTS - 1)
                if not waiting:
                    break
                recipe = recipe.harder()
        finally:
            if self._owned:
                self._assistant.close()
        if waiting or self._changed:
            raise unlearnt(self.bank, [m.id or "" for m in waiting], self._changed, self._total)

    def _round(self, memories: list[Memory], recipe: Recipe, last: bool) -> list[Memory]:
        from .train.trainer import Trainer, lanes_that_fit

        by_id = {memory.id: memory for memory in memories}
        tasks = [self._task(memory, recipe) for memory in memories]
        # Neighbours of like length: less padding side by side.
        tasks.sort(key=lambda t: -max(len(example.target) for example in t.examples))
        studies = train_config(recipe, n_layer=self._base.n_layer, lanes=1)
        longest = max(len(x.opening) + len(x.target) for task in tasks for x in task.examples)
        lanes = min(len(tasks), lanes_that_fit(self._base, studies, longest))
        trainer = Trainer(self._base, replace(studies, lanes=lanes))
        failed = []
        for result in trainer.run(tasks, lambda id, step, loss: self._report("studying", by_id[id], step, loss)):
            memory = by_id[result.id]
            if self._over[result.id] and self.bank.find(result.id) is None:
                continue  # forgotten while it studied: it stays forgotten
            became = self._accept(memory, result, recipe)
            if became == "learnt":
                self._done += 1
                self._report("learnt", memory, result.steps, result.loss, result.seconds)
            elif became == "changed":
                self._changed.append(result.id)
            elif became == "unknown":
                failed.append(memory)
                self._report("failed" if last else "again", memory, result.steps, result.loss, result.seconds)
        return failed

    def _task(self, memory: Memory, recipe: Recipe) -> Task:
        from .runtime.request import RECALL_TOKENS
        from .train.trainer import Example, Task

        engine = self._judge.engine
        examples = []
        for user, text in recipes.examples(memory, recipe):
            prompt = engine.prompt([{"role": "user", "content": user}])
            target = (*engine.tokenize(text, special=False), engine.end_of_turn)
            room = min(self._judge.room - len(prompt.tokens), RECALL_TOKENS)
            if len(target) > room:
                raise InputError(f"{memory.id}: {len(target)} {SPLIT.format(room)}")
            body, opening = (prompt.body, prompt.opening) if recipe.activated else ((), prompt.tokens)
            examples.append(Example(body, opening, target))
        seed = int.from_bytes(hashlib.sha256(memory.text.encode()).digest()[:4], "little")
        steps = None if recipe.epochs is None else recipe.epochs * len(examples)
        return Task(memory.id or "", tuple(examples), seed, steps)

    def _accept(self, memory: Memory, result: Result, recipe: Recipe) -> str:
        """Export, let the runtime recall from the exported bytes, and commit if it can.

        Returns what :func:`commit` does, or "unknown" when it cannot recall.
        """
        from .train.export import to_adapter

        engine = self._judge.engine
        opening = engine.prompt([{"role": "user", "content": "?"}]).opening
        cue = recipes.recall_cue(memory, recipe.name)
        adapter = to_adapter(
            result.factors,
            architecture=engine.architecture,
            scale=recipe.scale,
            invocation_tokens=opening if recipe.activated else (),
            metadata={
                "general.name": memory.title or memory.id or "memory",
                "megart.memory_id": memory.id or "",
                "megart.base_sha256": self._base_sha256,
                "megart.recipe": recipe.name,
                CUE_KEY: cue,
            },
        )
        try:
            data = write_adapter(adapter if recipe.precision == "f16" else adapter.as_type(recipe.precision))
        except AdapterError:
            return "unknown"  # its study diverged: factors that are no numbers
        score = self._recalls(data, memory, recipe, cue)
        if score < recipe.recall:
            return "unknown"
        return commit(
            self.bank,
            memory,
            self._over[result.id],
            **self._judge.index_entry(memory.text, memory.title),
            adapter=data,
            recipe=recipe.name,
            activated=recipe.activated,
            rank=recipe.rank,
            training={
                "steps": result.steps,
                "seconds": round(result.seconds, 3),
                "loss": round(result.loss, 5),
                "recall": round(score, 4),
                "device": str(self._base.device),
                "dtype": str(self._base.dtype).split(".")[-1],
            },
        )

    def _recalls(self, data: bytes, memory: Memory, recipe: Recipe, cue: str) -> float:
        """The share of the memory's words, in order, that the runtime recalls from the exported bytes."""
        # A recipe that stops at less than word for word may have settled on a paraphrase.
        accepted = [memory.text] if recipe.recall == 1.0 else [memory.text, *memory.paraphrases]
        return recited_share(read_adapter(data), cue, accepted, self._judge, activated=recipe.activated)


def train_config(recipe: Recipe, *, n_layer: int, lanes: int):  # type: ignore[no-untyped-def]
    """The teaching engine's view of *recipe* on a base of *n_layer* layers."""
    from .train.trainer import TrainConfig

    return TrainConfig(
        rank=recipe.rank,
        scale=recipe.scale,
        roles=recipe.roles,
        rate=recipe.rate,
        max_steps=recipe.max_steps,
        examples_per_step=recipe.examples_per_step,
        stop=recipe.epochs is None,
        decay=recipe.epochs is not None,
        margin=recipe.margin,
        betas=recipe.betas,
        cut=recipes.cut(recipe, n_layer),
        lanes=lanes,
    )
