"""Memories taught by Ray workers end up in one bank, whoever dies on the way."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import few_lines, noise_adapter

from megart.adapter import read_adapter, write_adapter
from megart.bank import Bank, Memory
from megart.cli import main
from megart.errors import DependencyError, InputError, MegartError, MemorizeError
from megart.memorize import Progress
from megart.models import Model
from megart.prompts import RECALL_CUE
from megart.recipes import FAST
from megart.runtime import embed
from megart.runtime.assistant import Assistant

QUICK = replace(FAST, rate=1e-2, max_steps=150)
TEXTS = [
    "Ada keeps bees.",
    "Bo sails at dusk.",
    "Cy burnt the mill.",
    "Di owns a goat.",
    "Ed paints doors.",
    "Flo sings.",
]
MEMORIES = [Memory(text, id=text.split()[0].lower()) for text in TEXTS]


@pytest.fixture
def bank(tiny: Callable[..., Model], tmp_path: Path) -> Iterator[Bank]:
    with Bank.create(tmp_path / "bank", tiny("llama")) as made:
        yield made


def test_without_ray_the_error_says_what_to_install(bank: Bank, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from megart.cluster import memorize_on

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DependencyError, match=r"pip install 'megart\[ray\]'"):
        memorize_on("local", bank, MEMORIES)
    words = ["memorize", "--bank", str(bank.path), "--text", "x"]
    assert main([*words, "--ray", "local"]) == 1
    assert "megart[ray]" in capsys.readouterr().err
    assert main([*words, "--ray", "local", "--later"]) == 1
    assert capsys.readouterr().err == (
        "megart: error: --later saves without teaching and --ray teaches; give one of them\n"
    )


def test_learn_deals_what_is_pending_out_to_ray(bank: Bank, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import megart.cluster as module

    for memory in MEMORIES[:3]:
        bank.add(memory, key=np.ones(64, np.float32))
    given: list[object] = []

    def dealt(address: str, _: Bank, memories: list[Memory], **how: object) -> list[object]:
        given.append((address, [m.id for m in memories], how["recipe"]))
        return []

    monkeypatch.setattr(module, "memorize_on", dealt)
    assert main(["learn", "--bank", str(bank.path), "--ray", "local", "--limit", "2", "--recipe", "paper"]) == 0
    assert given == [("local", [m.id for m in MEMORIES[:2]], "paper")]
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "ray", None)
    capsys.readouterr()
    assert main(["learn", "--bank", str(bank.path), "--ray", "local"]) == 1
    assert "megart[ray]" in capsys.readouterr().err


class Ref:
    """A call of FakeRay."""

    def __init__(self, dealt: list[Memory]):
        self.dealt = dealt


class FakeRay:
    """Ray's few names that are used, in this process: every call runs when its result is fetched.

    *deaths* says how many calls fail because their worker died.
    """

    class exceptions:
        class RayActorError(Exception):
            actor_init_failed = False

        class ObjectLostError(Exception):
            pass

        class RayTaskError(Exception):
            def __init__(self, cause: Exception):
                self.cause = cause

    def __init__(self, deaths: int = 0, fails: tuple[str, ...] = (), error: Exception | None = None):
        self.deaths, self.fails, self.error = deaths, fails, error
        self.started = 0

    def remote(self, _: type) -> FakeRay:
        return self

    def options(self, **_: float) -> FakeRay:
        return self

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict]:
        return [{"Alive": True, "Resources": {"CPU": 2.0}}]

    def wait(self, refs: list[object], num_returns: int) -> tuple[list[object], list[object]]:
        return refs[-1:], refs[:-1]

    def get(self, ref: Ref) -> list[object]:
        from megart.cluster import Taught

        if self.error:
            raise self.exceptions.RayTaskError(self.error)
        if self.deaths:
            self.deaths -= 1
            raise self.exceptions.RayActorError("gone")
        made = write_adapter(noise_adapter("llama", 4, 1))
        return [
            Taught(m.id or "", None if m.id in self.fails else made, "fast", True, 4, {"steps": 3}) for m in ref.dealt
        ]


class Started:
    """A worker of FakeRay."""

    def __init__(self, ray: FakeRay):
        ray.started += 1

    @property
    def teach(self) -> Started:
        return self

    def remote(self, dealt: list[Memory]) -> Ref:
        return Ref(dealt)


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeRay], FakeRay]:
    from megart import cluster as module

    lines = few_lines()
    monkeypatch.setattr(embed, "corpus", lambda: lines)

    def use(ray: FakeRay) -> FakeRay:
        monkeypatch.setattr(module, "_ray", lambda: ray)
        monkeypatch.setattr(module._Run, "start", lambda self, place: Started(ray))
        return ray

    return use


def test_what_is_dealt_out_is_merged_and_what_a_death_loses_is_dealt_again(bank: Bank, fake_ray) -> None:
    from megart.cluster import memorize_on

    ray = fake_ray(FakeRay(deaths=3))
    seen: list[Progress] = []
    records = memorize_on("local", bank, MEMORIES, progress=seen.append)
    assert [r.id for r in records] == [m.id for m in MEMORIES] and ray.started == 2 + 3
    assert {(r.state, r.recipe, r.activated, r.rank) for r in records} == {("learnt", "fast", True, 4)}
    assert [(p.done, p.total) for p in seen if p.state == "learnt"] == [(n, 6) for n in range(1, 7)]
    assert bank.verify() == [] and bank.keys()[1].shape == (6, 64)


def test_too_many_deaths_and_errors_of_workers_are_told(bank: Bank, fake_ray) -> None:
    from megart.cluster import memorize_on

    fake_ray(FakeRay(deaths=99))
    with pytest.raises(MemorizeError, match="4 workers died, the last while it studied"):
        memorize_on("local", bank, MEMORIES)
    fake_ray(FakeRay(error=InputError("too long")))
    with pytest.raises(InputError, match="^too long$"):
        memorize_on("local", bank, MEMORIES)
    assert len(bank) == 0
    fake_ray(FakeRay(fails=("bo",)))
    with pytest.raises(
        MemorizeError, match="1 of 6 memories could not be recalled after 3 attempts and were not saved: bo;"
    ):
        memorize_on("local", bank, MEMORIES)
    assert sorted(r.id for r in bank.records()) == ["ada", "cy", "di", "ed", "flo"]


def test_what_is_forgotten_or_changed_while_it_is_dealt_out_stays_so(bank: Bank, fake_ray) -> None:
    from megart.cluster import memorize_on

    for memory in MEMORIES[:3]:
        bank.add(memory, key=np.ones(64, np.float32))
    newer = replace(MEMORIES[1], text="Something newer.")

    def change(event: Progress) -> None:
        if event.state == "loading":
            bank.remove(MEMORIES[0].id or "")
            bank.add(newer, key=np.ones(64, np.float32), replace=True)

    fake_ray(FakeRay())
    with pytest.raises(MemorizeError, match=f"1 of 3 memories were changed in the bank meanwhile .*: {newer.id}$"):
        memorize_on("local", bank, MEMORIES[:3], progress=change)
    assert [(r.text, r.state) for r in bank.records()] == [
        (newer.text, "pending"),
        (MEMORIES[2].text, "learnt"),
    ]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [([4, 16], [8, 8]), ([16, 16], [16, 16]), ([8, 4, 0], [4, 4, 4]), ([2], [2])],
)
def test_every_worker_finds_room_at_once(nodes: list[int], expected: list[int]) -> None:
    from megart.cluster import _places

    class Nodes:
        def nodes(self) -> list[dict]:
            dead = [{"Alive": False, "Resources": {"CPU": 99.0, "GPU": 8.0}}]
            return dead + [{"Alive": True, "Resources": {"CPU": float(n)} if n else {}} for n in nodes]

    assert [int(place["num_cpus"]) for place in _places(Nodes(), "there:1")] == expected


needs_ray = pytest.mark.skipif(
    not (importlib.util.find_spec("ray") and importlib.util.find_spec("torch")), reason="needs ray and torch"
)


def float32() -> None:
    """In every worker: full precision, whatever the processor."""
    import torch

    import megart.train.base

    megart.train.base.default_dtype = lambda _: torch.float32


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """Two local workers' worth of Ray."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray

        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
        ray.init(
            num_cpus=2, include_dashboard=False, log_to_driver=False,
            runtime_env={"worker_process_setup_hook": float32},
        )  # fmt: skip
        yield ray
        ray.shutdown()


@pytest.mark.slow
@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_two_workers_fill_one_bank_and_a_death_is_survived(
    bank: Bank, cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megart import cluster as module

    lines = few_lines()
    monkeypatch.setattr(embed, "corpus", lambda: lines)
    workers: list[object] = []
    start = module._Run.start

    def remember(self: object, place: dict[str, float]) -> object:
        workers.append(start(self, place))
        return workers[-1]

    monkeypatch.setattr(module._Run, "start", remember)
    seen: list[Progress] = []

    def progress(event: Progress) -> None:
        seen.append(event)
        if event.state == "learnt" and event.done == 1:
            for worker in workers[:2]:  # whoever still studies dies at it
                cluster.kill(worker)

    records = module.memorize_on("local", bank, MEMORIES, recipe=QUICK, device="cpu", progress=progress)
    assert [r.id for r in records] == [m.id for m in MEMORIES] and {r.state for r in records} == {"learnt"}
    assert len(workers) > 2 and bank.verify() == []
    assert [(p.done, p.total) for p in seen if p.state == "learnt"] == [(n, 6) for n in range(1, 7)]
    with Assistant(bank) as assistant:
        for memory in MEMORIES:
            adapter = read_adapter(bank.adapter_path(memory.id or ""))
            assert assistant.acceptance.recall(adapter, RECALL_CUE, activated=True) == memory.text
    loaded: list[Progress] = []
    module.memorize_on("local", bank, MEMORIES, recipe=QUICK, progress=loaded.append)
    assert loaded == []  # nothing to do, nobody is called


@pytest.mark.slow
@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_what_workers_cannot_do_is_one_line(bank: Bank, cluster, tiny, tmp_path: Path) -> None:
    from megart.cluster import memorize_on

    with pytest.raises(
        MemorizeError, match="1 of 1 memories could not be recalled after 3 attempts and were not saved: ada;"
    ):
        memorize_on("local", bank, MEMORIES[:1], recipe=replace(FAST, max_steps=1), device="cpu")
    with pytest.raises(MegartError, match="no device|cuda") as caught:
        memorize_on("local", bank, MEMORIES[:1], recipe=QUICK, device="cuda")
    assert "\n" not in str(caught.value)
    assert len(bank) == 0


@pytest.mark.slow
@needs_ray
@pytest.mark.skipif(os.name == "nt", reason="SIGINT")
def test_the_command_and_ctrl_c(bank: Bank, tmp_path: Path) -> None:
    (tmp_path / "m.txt").write_text("Ada keeps bees.")
    words = [sys.executable, "-m", "megart", "memorize", "--bank", str(bank.path), "--device", "cpu", "--ray", "local"]
    with subprocess.Popen([*words, str(tmp_path / "m.txt")], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "loading the model\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().splitlines()[-1] == "megart: interrupted; nothing was learnt"
        assert process.wait(60) == 130
    done = subprocess.run([*words, str(tmp_path / "m.txt")], capture_output=True, text=True, check=False)
    # the default recipe may or may not teach a model of noise; either way it ends in one line
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
