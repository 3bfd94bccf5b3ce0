"""Many machines: memories dealt out to Ray workers, merged into one bank as they come back.

Ray schedules, moves and notices the dead; a worker is the ordinary Teacher with a bank of its own in
a temporary folder. Keys are made here, by the bank's own runtime, so that all of them are alike.
"""

from __future__ import annotations

import math
import tempfile
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .architecture import check_teachable
from .bank import Bank, Memory, Record
from .errors import DependencyError, InputError, MegartError, MemorizeError, ModelError
from .memorize import OnProgress, Progress, TeachOptions, recipe_of
from .models import Model, resolve_model
from .plan import commit, plan, unlearnt
from .recipes import Recipe

if TYPE_CHECKING:
    from .runtime.assistant import Assistant

LOCAL_WORKERS = 2
# A worker gets so many memories at once: what a death loses, and what one call has to learn side by side.
_MOST_DEALT = 16
_DEATHS = 3


@dataclass(frozen=True)
class Taught:
    """What a worker sends back for one memory; no adapter when it could not be learnt."""

    id: str
    adapter: bytes | None
    recipe: str | None = None
    activated: bool = False
    rank: int = 0
    training: dict[str, Any] | None = None


class TeachingWorker:
    """One process that teaches; made into a Ray actor by :func:`memorize_on`."""

    def __init__(self, base: Model, sha256: str, options: TeachOptions):
        from .memorize import Teacher
        from .runtime.assistant import Assistant

        if not base.gguf.is_file() or base.sha256 != sha256:
            import socket

            state = "another file" if base.gguf.is_file() else "no file"
            raise ModelError(
                f"{socket.gethostname()} has {state} at {base.gguf}; every worker needs the bank's base there"
            )
        self._folder = tempfile.TemporaryDirectory(prefix="megart-worker-")
        self._bank = Bank.create(Path(self._folder.name) / "bank", base)
        self._teacher = Teacher(self._bank, options, base, Assistant(self._bank, model=base))

    def teach(self, memories: list[Memory]) -> list[Taught]:
        """Teach *memories* side by side and hand back what became of each."""
        try:
            self._teacher.teach(memories)
        except MemorizeError:
            pass  # those that are missing in the bank below
        return [self._take(memory.id or "") for memory in memories]

    def _take(self, id: str) -> Taught:
        record = self._bank.find(id)
        if record is None:
            return Taught(id, None)
        adapter = self._bank.adapter_bytes(id)
        self._bank.remove(id)
        return Taught(id, adapter, record.recipe, record.activated, record.rank, record.training)


def memorize_on(
    address: str,
    bank: Bank,
    memories: Iterable[Memory],
    *,
    recipe: str | Recipe = "fast",
    device: str | None = None,
    model: str | Path | Model | None = None,
    progress: OnProgress | None = None,
    replace_existing: bool = False,
) -> list[Record]:
    """As :func:`megart.memorize`, by the workers of the Ray cluster at *address*.

    "local" starts two workers on this machine. Else there is one worker per GPU, without GPUs
    one per machine; each needs the base at the same path. Memories of a worker that dies are dealt
    out anew, up to three times. Raises MemorizeError at the end when some could not be learnt.
    """
    ray = _ray()
    options = TeachOptions(recipe_of(recipe), device, progress)
    todo = plan(bank, memories, replace_existing)
    if todo.memories:
        bank.check_writable()
        base = resolve_model(model) if model is not None else bank.model
        bank.check_base(base)
        check_teachable(base)
        options.tell(Progress("loading", 0, len(todo.memories)))
        ours = not ray.is_initialized()
        if ours:
            _connect(ray, address)
        from .runtime.assistant import Assistant

        try:
            with Assistant(bank, model=base) as assistant:
                run = _Run(ray, bank, todo.over, base, options, assistant)
                run.teach(todo.memories, _places(ray, address))
        finally:
            if ours:
                ray.shutdown()
    return [record for id in todo.order if (record := bank.find(id))]


class _Run:
    """One run over a cluster."""

    def __init__(
        self,
        ray: Any,
        bank: Bank,
        over: Mapping[str, Memory | None],
        base: Model,
        options: TeachOptions,
        assistant: Assistant,
    ):
        self._ray, self._bank, self._tell, self._judge = ray, bank, options.tell, assistant.acceptance
        self._how = (base, base.sha256, replace(options, progress=None))
        self._over = over
        self._failed: list[str] = []
        self._changed: list[str] = []
        self._deaths = 0

    def start(self, place: dict[str, float]) -> Any:
        """A new worker; Ray waits for room in the cluster."""
        return self._ray.remote(TeachingWorker).options(**place).remote(*self._how)

    def teach(self, memories: list[Memory], places: list[dict[str, float]]) -> None:
        by_id = {memory.id: memory for memory in memories}
        size = max(1, min(_MOST_DEALT, math.ceil(len(memories) / (2 * len(places)))))
        # Neighbours of like length study side by side.
        ordered = sorted(memories, key=lambda memory: -len(memory.text))
        waiting = deque(ordered[i : i + size] for i in range(0, len(ordered), size))
        places = places[: len(waiting)]
        running: dict[Any, tuple[Any, dict[str, float], list[Memory]]] = {}
        idle = [(self.start(place), place) for place in places]
        done = 0
        while waiting or running:
            while waiting and idle:
                worker, place = idle.pop()
                dealt = waiting.popleft()
                running[worker.teach.remote(dealt)] = (worker, place, dealt)
            (ready, *_), _ = self._ray.wait(list(running), num_returns=1)
            worker, place, dealt = running.pop(ready)
            try:
                taught = self._ray.get(ready)
            except (self._ray.exceptions.RayActorError, self._ray.exceptions.ObjectLostError) as error:
                self._mourn(error, dealt)
                waiting.append(dealt)
                idle.append((self.start(place), place))
                continue
            except self._ray.exceptions.RayTaskError as error:
                cause = error.cause
                raise (
                    cause if isinstance(cause, MegartError) else MemorizeError(f"a worker failed: {cause}")
                ) from error
            idle.append((worker, place))
            for one in taught:
                done += self._commit(by_id[one.id], one, done, len(memories))
        if self._failed or self._changed:
            raise unlearnt(self._bank, self._failed, self._changed, len(memories))

    def _mourn(self, error: Any, dealt: list[Memory]) -> None:
        """Count a worker's death; raises when there have been too many, or it could not even start."""
        self._deaths += 1
        if getattr(error, "actor_init_failed", False):
            # Ray's text is the worker's traceback; its last line is the error.
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise MemorizeError(f"a worker could not start: {lines[-1].strip()}") from error
        if self._deaths > _DEATHS:
            names = ", ".join(memory.id or "" for memory in dealt[:5])
            raise MemorizeError(
                f"{self._deaths} workers died, the last while it studied {names}; see Ray's logs"
            ) from error

    def _commit(self, memory: Memory, taught: Taught, done: int, total: int) -> int:
        """Commit one result; returns how many memories came to the bank by it."""
        figures = taught.training or {}

        def tell(state: str, done: int) -> None:
            steps, loss, seconds = (float(figures.get(name, 0)) for name in ("steps", "loss", "seconds"))
            self._tell(Progress(state, done, total, memory.id or "", memory.title or "", int(steps), loss, seconds))

        if taught.adapter is None:
            self._failed.append(taught.id)
            tell("failed", done)
            return 0
        became = commit(
            self._bank,
            memory,
            self._over[taught.id],
            **self._judge.index_entry(memory.text, memory.title),
            adapter=taught.adapter,
            recipe=taught.recipe,
            activated=taught.activated,
            rank=taught.rank,
            training=figures,
        )
        if became == "changed":
            self._changed.append(taught.id)
        if became != "learnt":
            return 0
        tell("learnt", done + 1)
        return 1


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise DependencyError("--ray needs Ray, which is not installed; run: pip install 'megart[ray]'") from error
    return ray


def _connect(ray: Any, address: str) -> None:
    quiet = {"log_to_driver": False, "logging_level": "error"}
    try:
        if address == "local":
            ray.init(num_cpus=LOCAL_WORKERS, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"no Ray cluster at {address}: {first}; give its address, or local") from error


def _places(ray: Any, address: str) -> list[dict[str, float]]:
    """What each worker reserves: a GPU, or a machine's processors."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in alive))
    if gpus and address != "local":
        return [{"num_gpus": 1, "num_cpus": 1}] * gpus
    cpus = [max(1, int(node.get("CPU", 0))) for node in alive] or [1]
    count = LOCAL_WORKERS if address == "local" else len(cpus)
    # The most that each can have so that all of them find room at once: one that waits for ever holds its memories.
    each = next((n for n in range(max(cpus), 0, -1) if sum(c // n for c in cpus) >= count), 1)
    return [{"num_cpus": each}] * count
