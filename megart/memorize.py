"""Memorizing: from text to a committed memory, accepted by the runtime on the exported file.

Ties the teaching engine (torch) to the runtime (llama.cpp) and the bank; heavy imports happen only
when something is to be taught.
"""

from __future__ import annotations

import difflib
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

if TYPE_CHECKING:
    from .runtime.assistant import Assistant
    from .train.study import Result, Task

# Logits: where every token leads by so much, word-by-word decoding is not waited for.
SURE = 0.5
Encode = Callable[[str, str], tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


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
    answers from its text until :func:`learn` has taught it. Returns the records of all memories given. Raises InputError (same id, other text), DependencyError (torch missing),
    BaseMismatchError, and MemorizeError at the end when some memories could not be learnt; the
    others are in the bank by then.
    """
    chosen = recipe_of(recipe)
    bank.remove_expired()
    todo = plan(bank, memories, replace_existing)
    if todo.memories:
        bank.check_writable()
    if later:
        _save(bank, todo, replace_existing, model, progress, assistant)
    elif todo.memories:
        Teacher(bank, chosen, device, model, progress, assistant).teach(todo.memories, todo.over)
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
    model: str | Path | Model | None,
    progress: OnProgress | None,
    assistant: Assistant | None,
) -> None:
    """Commit what is to be saved as pending."""
    from .later import save_pending

    tell = progress or (lambda _: None)
    memories = [m for m in todo.memories if again or todo.over[m.id or ""] is None]
    if memories:
        save_pending(
            bank,
            memories,
            over=todo.over,
            model=model,
            assistant=assistant,
            on_loading=lambda: tell(Progress("loading", 0, len(memories))),
            on_saved=lambda memory, seconds, done, total: tell(
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
    """One run of teaching; keeps the frozen base and the runtime loaded."""

    def __init__(
        self,
        bank: Bank,
        recipe: Recipe,
        device: str | None,
        model: str | Path | Model | None,
        progress: OnProgress | None,
        assistant: Assistant | None,
    ):
        self.bank, self.recipe = bank, recipe
        self._progress = progress or (lambda _: None)
        self._done = self._total = 0
        self._over: Mapping[str, Memory | None] = {}
        self._changed: list[str] = []
        self._model = resolve_model(model) if model is not None else bank.model
        bank.check_base(self._model)
        check_teachable(self._model)
        self._report("loading")
        try:
            from .train.base import load_base
        except ImportError as error:
            raise DependencyError(
                f"teaching needs PyTorch and transformers ({error.name} is missing); run: pip install 'megart[train]'"
            ) from error
        from .runtime.assistant import Assistant

        self._owned = assistant is None
        self._assistant = assistant or Assistant(bank, model=self._model)
        try:
            self._assistant.prepare()
            self._base = load_base(self._model, device=device)
        except BaseException:
            if self._owned:
                self._assistant.close()
            raise

    def _report(
        self, state: str, memory: Memory | None = None, step: int = 0, loss: float = 0.0, seconds: float = 0.0
    ) -> None:
        id, title = (memory.id or "", memory.title or "") if memory else ("", "")
        self._progress(Progress(state, self._done, self._total, id, title, step, loss, seconds))

    def teach(self, memories: list[Memory], over: Mapping[str, Memory | None] | None = None) -> None:
        """Teach and commit; memories that fail go round again with more capacity.

        ``over``: what each may replace, by id (see :class:`Plan`); by default what the bank holds now.
        """
        self._total = len(memories)
        self._over = over or {m.id or "": (r.memory if (r := self.bank.find(m.id or "")) else None) for m in memories}
        self._changed = []
        waiting, recipe = memories, self.recipe
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
        from .train.study import Classroom, lanes_that_fit

        by_id = {memory.id: memory for memory in memories}
        tasks = [self._task(memory, recipe) for memory in memories]
        # Neighbours of like length: less padding side by side.
        tasks.sort(key=lambda t: -max(len(lesson.target) for lesson in t.lessons))
        studies = course(recipe, n_layer=self._base.n_layer, lanes=1)
        longest = max(len(x.opening) + len(x.target) for task in tasks for x in task.lessons)
        lanes = min(len(tasks), lanes_that_fit(self._base, studies, longest))
        classroom = Classroom(self._base, replace(studies, lanes=lanes))
        failed = []
        for result in classroom.run(tasks, lambda id, step, loss: self._report("studying", by_id[id], step, loss)):
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
        from .runtime.assistant import RECALL_TOKENS
        from .train.study import Lesson, Task

        engine = self._assistant.engine
        made = []
        for user, text in recipes.lessons(memory, recipe):
            prompt = engine.prompt([{"role": "user", "content": user}])
            target = (*engine.tokenize(text, special=False), engine.end_of_turn)
            room = min(self._assistant.mix.size - len(prompt.tokens), RECALL_TOKENS)
            if len(target) > room:
                raise InputError(f"{memory.id}: {len(target)} {SPLIT.format(room)}")
            body, opening = (prompt.body, prompt.opening) if recipe.activated else ((), prompt.tokens)
            made.append(Lesson(body, opening, target))
        seed = int.from_bytes(hashlib.sha256(memory.text.encode()).digest()[:4], "little")
        steps = None if recipe.epochs is None else recipe.epochs * len(made)
        return Task(memory.id or "", tuple(made), seed, steps)

    def _accept(self, memory: Memory, result: Result, recipe: Recipe) -> str:
        """Export, let the runtime recall from the exported bytes, and commit if it can.

        Returns what :func:`commit` does, or "unknown" when it cannot recall.
        """
        from .train.export import to_adapter

        engine = self._assistant.engine
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
                "megart.base_sha256": self._model.sha256,
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
            **self._assistant.found_by(memory.text, memory.title),
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
        adapter = read_adapter(data)
        if self._assistant.try_lead(adapter, cue, memory.text, activated=recipe.activated) >= SURE:
            return 1.0
        limit = 2 * len(self._assistant.engine.tokenize(memory.text, special=False)) + 16
        heard = self._assistant.try_recall(adapter, cue, activated=recipe.activated, max_tokens=limit)
        # A course that stops at less than word for word may have settled on a paraphrase.
        accepted = [memory.text] if recipe.recall == 1.0 else [memory.text, *memory.paraphrases]
        return max(similarity(heard, text) for text in accepted)


def course(recipe: Recipe, *, n_layer: int, lanes: int):  # type: ignore[no-untyped-def]
    """The teaching engine's view of *recipe* on a base of *n_layer* layers."""
    from .train.study import Course

    return Course(
        rank=recipe.rank,
        scale=recipe.scale,
        roles=recipe.roles,
        rate=recipe.rate,
        max_steps=recipe.max_steps,
        lessons_per_step=recipe.lessons_per_step,
        stop=recipe.epochs is None,
        decay=recipe.epochs is not None,
        margin=recipe.margin,
        weight_decay=recipe.weight_decay,
        betas=recipe.betas,
        cut=recipes.cut(recipe, n_layer),
        lanes=lanes,
    )


def similarity(heard: str, text: str) -> float:
    """1.0 when *heard* is *text* but for white space; else the share of words kept in order."""
    said, meant = heard.split(), text.split()
    if said == meant:
        return 1.0
    match = difflib.SequenceMatcher(None, said, meant, autojunk=False)
    return min(0.9999, match.ratio())
