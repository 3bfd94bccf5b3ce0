"""Teaching: a memory's result is its own, whoever studies beside it, and study ends when it is learnt."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from helpers import FAST_ROLES, PAPER_ROLES, seat

from megart.errors import ModelError
from megart.models import Model
from megart.train import base as bases
from megart.train.base import FrozenBase, load_base
from megart.train.lora import LaneAdam, StackedLora
from megart.train.trainer import Example, Result, Task, TrainConfig, Trainer, _Lane

COURSE = TrainConfig(
    rank=4,
    scale=1.0,
    roles=FAST_ROLES,
    rate=1e-2,
    max_steps=8,
    examples_per_step=2,
    stop=False,
    lanes=1,
)


def tokens(seed: int, count: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(32, 320, count).tolist())


def task(seed: int, length: int, prompts: tuple[int, ...] = (12, 7), opening: int = 3) -> Task:
    """A task of one target under several prompts, given by their lengths; 0 is a whole-prompt example."""
    target = tokens(seed, length)
    examples = [Example(tokens(100 * seed + i, n), tokens(7, opening if n else 9), target) for i, n in enumerate(prompts)]
    return Task(f"task{seed}", tuple(examples), seed)


def run(base: FrozenBase, tasks: list[Task], config: TrainConfig) -> dict[str, Result]:
    return {result.id: result for result in Trainer(base, config).run(tasks)}


def assert_same(one: Result, other: Result, rate: float) -> None:
    """Equal factors: Adam divides by sqrt(v), so rounding noise grows where a gradient is nearly 0."""
    assert one.steps == other.steps
    for name, pair in one.factors.items():
        for got, expected in zip(other.factors[name], pair, strict=True):
            difference = np.abs(got - expected)
            assert np.median(difference) < 1e-4 * rate and difference.max() < rate, name
    assert other.loss == pytest.approx(one.loss, rel=1e-3)


TASKS = [
    task(1, 14),
    task(2, 5, prompts=(20, 3, 9)),
    task(3, 30, prompts=(0, 0)),  # the adapter sees the whole prompt
    task(4, 9, prompts=(0, 25), opening=1),
    task(5, 21),
]


def test_a_result_does_not_depend_on_the_neighbours(tiny_base) -> None:
    base = tiny_base("llama")
    together = run(base, TASKS, replace(COURSE, lanes=3))
    assert sorted(together) == sorted(t.id for t in TASKS)
    for each in TASKS:
        (alone,) = Trainer(base, COURSE).run([each])
        assert_same(alone, together[each.id], COURSE.rate)


def test_a_result_does_not_depend_on_who_enters_and_leaves_when(tiny_base) -> None:
    """With stopping on, lanes empty at different steps; lanes move and new tasks take their place."""
    base = tiny_base("qwen3")
    config = replace(COURSE, stop=True, margin=0.5, max_steps=40)
    alone = {t.id: next(iter(Trainer(base, config).run([t]))) for t in TASKS}
    steps = [alone[t.id].steps for t in TASKS]
    assert len(set(steps)) >= 3  # they do leave at different times
    for lanes in (2, 4):
        together = run(base, TASKS, replace(config, lanes=lanes))
        for each in TASKS:
            assert together[each.id].learnt == alone[each.id].learnt
            assert_same(alone[each.id], together[each.id], config.rate)


def test_study_ends_when_every_target_leads_by_the_margin(tiny_base) -> None:
    base = tiny_base("llama")
    examples = (
        *task(1, 10).examples,
        Example(tokens(50, 6), tokens(7, 3), tokens(9, 10)),
    )
    given = Task("t", examples, 1)
    config = replace(COURSE, stop=True, max_steps=60, examples_per_step=3)
    found = {margin: run(base, [given], replace(config, margin=margin))["t"] for margin in (0.2, 3.0)}
    for margin, result in found.items():
        assert result.learnt and result.margin >= margin and result.steps < config.max_steps
    assert found[0.2].steps < found[3.0].steps

    (short,) = Trainer(base, replace(config, max_steps=2, margin=3.0)).run([given])
    assert not short.learnt and short.steps == 2 and short.margin < 3.0
    (fixed,) = Trainer(base, replace(config, stop=False, max_steps=50, margin=0.2)).run([given])
    assert fixed.learnt and fixed.steps == 50  # a config of fixed length goes on


def test_what_was_reported_as_learnt_is_what_the_factors_do(tiny_base) -> None:
    """The step that finds a memory learnt must not move it any more."""
    base = tiny_base("llama")
    given = task(1, 12)
    (result,) = Trainer(base, replace(COURSE, stop=True, margin=1.0, max_steps=60)).run([given])
    assert result.learnt
    trainer = Trainer(base, COURSE)
    trainer.lora.load_lane(0, result.factors)
    with torch.no_grad(), trainer.lora.attached(base.network), trainer.lora.use(1):
        lane = seat(trainer, given)
        passes = [trainer._pass([(lane, i)]) for i in range(len(given.examples))]
    losses, margins = (torch.cat(each) for each in zip(*passes, strict=True))
    assert margins.min().item() == pytest.approx(result.margin, abs=1e-3)
    assert losses.mean().item() == pytest.approx(result.loss, abs=1e-3)


def test_an_untaught_adapter_changes_nothing_and_the_base_never_changes(tiny_base) -> None:
    base = tiny_base("qwen2")
    ids = torch.tensor([tokens(3, 20)])
    with torch.no_grad():
        before = base.network(ids).logits
        lora = StackedLora(base, base.targets, 2, 4, 1.0)
        lora.reset_lane(0, 1)
        with lora.attached(base.network), lora.use(1):
            assert torch.equal(base.network(ids).logits, before)
        run(base, [], COURSE)
    run(base, [task(1, 6)], replace(COURSE, max_steps=2))
    with torch.no_grad():
        assert torch.equal(base.network(ids).logits, before)
    assert not base.network.model.layers[0].mlp.up_proj._forward_hooks


def test_hooks_are_gone_when_a_run_is_left_early(tiny_base) -> None:
    base = tiny_base("llama")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Trainer(base, COURSE).run([task(1, 6)], stop))
    results = Trainer(base, replace(COURSE, max_steps=1)).run([task(1, 6), task(2, 6)])
    next(results)
    results.close()
    assert not any(t.module._forward_hooks for t in base.targets)


def test_lanes_keep_their_factors_and_moments(tiny_base) -> None:
    base = tiny_base("llama")
    lora = StackedLora(base, base.targets[:2], 3, 4, 1.0)
    optimizer = LaneAdam(lora)
    for lane in range(3):
        lora.reset_lane(lane, lane)
    start = [lora.factors(lane) for lane in range(3)]
    lora.grad.normal_(generator=torch.Generator().manual_seed(0))
    optimizer.step([1e-2, 0.0, 1e-2])
    assert optimizer.steps == [1, 0, 1] and not lora.grad.any()
    after = [lora.factors(lane) for lane in range(3)]
    name = base.targets[0].name
    for lane, moved in enumerate((True, False, True)):
        assert (after[lane][name][0] != start[lane][name][0]).any() == moved
    optimizer.move_lane(2, 0)
    lora.move_lane(2, 0)
    assert (lora.factors(0)[name][1] == after[2][name][1]).all()
    lora.load_lane(1, start[0])
    assert (lora.factors(1)[name][0] == start[0][name][0]).all()


def test_the_optimizer_is_adam(tiny_base) -> None:
    base = tiny_base("llama")
    lora = StackedLora(base, base.targets[:1], 2, 4, 1.0)
    optimizer = LaneAdam(lora)
    lora.reset_lane(0, 1)
    lora.reset_lane(1, 2)
    twins = [[torch.from_numpy(f).requires_grad_() for f in lora.factors(m)[base.targets[0].name]] for m in (0, 1)]
    stock = [torch.optim.Adam(twin, lr=1e-2, betas=(0.9, 0.95)) for twin in twins]
    generator = torch.Generator().manual_seed(3)
    for step in range(5):
        resting = step == 2  # the second lane rests once and is a step behind from then on
        lora.grad.normal_(generator=generator)
        for lane, twin in enumerate(twins):
            for view, parameter in zip(lora.views(lora.grad), twin, strict=True):
                parameter.grad = view[lane].clone()
        optimizer.step([1e-2, 0.0 if resting else 1e-2])
        stock[0].step()
        if not resting:
            stock[1].step()
    for got, expected in zip(lora.factors(0)[base.targets[0].name], twins[0], strict=True):
        np.testing.assert_allclose(got, expected.detach().numpy(), rtol=1e-4, atol=1e-6)
    for got, expected in zip(lora.factors(1)[base.targets[0].name], twins[1], strict=True):
        np.testing.assert_allclose(got, expected.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_only_the_roles_of_the_recipe_are_taught(tiny_base) -> None:
    (result,) = Trainer(tiny_base("llama"), replace(COURSE, roles=PAPER_ROLES, max_steps=1)).run([task(1, 4)])
    assert len(result.factors) == 8
    assert {name.split(".")[2] for name in result.factors} == set(PAPER_ROLES)


def test_decay(tiny_base) -> None:
    base = tiny_base("llama")

    def rate(room: Trainer, step: int, steps: int | None = None) -> float:
        return room._rate(_Lane(replace(task(1, 4), steps=steps), [], 0.0, step))

    room = Trainer(base, replace(COURSE, decay=True, max_steps=10))
    assert [rate(room, s) for s in (0, 5, 9)] == pytest.approx([1e-2, 5e-3, 1e-3])
    assert [rate(room, s, 20) for s in (0, 5, 10)] == pytest.approx([1e-2, 7.5e-3, 5e-3])  # a task's own length
    own = [replace(task(1, 4), id="long", steps=3), replace(task(2, 4), id="short", steps=1)]
    assert {r.id: r.steps for r in Trainer(base, replace(COURSE, stop=False)).run(own)} == {"long": 3, "short": 1}


def test_the_same_seed_gives_the_same_start_and_another_seed_another(tiny_base) -> None:
    lora = StackedLora(tiny_base("llama"), tiny_base("llama").targets, 3, 4, 1.0)
    for lane, seed in enumerate((5, 5, 6)):
        lora.reset_lane(lane, seed)
    name = "blk.0.ffn_down.weight"
    (a0, b0), (a1, _), (a2, _) = (lora.factors(lane)[name] for lane in range(3))
    assert (a0 == a1).all() and (a0 != a2).any() and not b0.any()
    assert np.abs(a0).max() <= 1 / math.sqrt(128)


# -- loading the base --------------------------------------------------------------------------------


def test_the_cache_gives_the_same_base_and_a_damaged_one_is_made_anew(tiny) -> None:
    model = tiny("llama")
    first = load_base(model, device="cpu", dtype=torch.float32)
    folder = next((bases.user_cache_dir() / "bases").iterdir())
    again = load_base(model, device="cpu", dtype=torch.float32)
    for weights in folder.glob("*.safetensors"):
        short = weights.read_bytes()[:1000]
        weights.unlink()  # the file itself is mapped
        weights.write_bytes(short)
    mended = load_base(model, device="cpu", dtype=torch.float32)
    ids = torch.tensor([tokens(1, 12)])
    with torch.no_grad():
        expected = first.network(ids).logits
        assert torch.equal(again.network(ids).logits, expected)
        assert torch.equal(mended.network(ids).logits, expected)
    assert [p for p in folder.parent.iterdir() if p != folder] == []
    assert not any(p.requires_grad for p in first.network.parameters())


def test_nothing_of_transformers_own_talk_reaches_the_terminal(tiny, capfd: pytest.CaptureFixture[str]) -> None:
    load_base(tiny("qwen2"), device="cpu", dtype=torch.float32, cache=False)
    load_base(tiny("qwen2"), device="cpu", dtype=torch.float32)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_targets_carry_gguf_names(tiny_base) -> None:
    base = tiny_base("qwen3")
    assert base.architecture == "qwen3" and len(base.targets) == 12
    assert base.targets[0].name == "blk.0.ffn_gate.weight" and base.targets[0].role == "ffn_gate"
    shapes = {t.role: tuple(t.module.weight.shape) for t in base.targets}
    assert shapes == {"ffn_gate": (128, 64), "ffn_up": (128, 64), "ffn_down": (64, 128)}


def test_models_that_cannot_be_taught_are_refused(tiny, tmp_path) -> None:
    import gguf

    path = tmp_path / "mamba.gguf"
    writer = gguf.GGUFWriter(str(path), "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match="mamba"):
        load_base(Model("m", path), device="cpu")
    (tmp_path / "not.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(ModelError, match="header is damaged"):
        load_base(Model("n", tmp_path / "not.gguf"), device="cpu")
    whole = tiny("llama").gguf.read_bytes()
    (tmp_path / "half.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="half.gguf|cannot load"):
        load_base(Model("h", tmp_path / "half.gguf"), device="cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="cuda"):
            load_base(tiny("llama"), device="cuda")


@pytest.mark.parametrize("cap", [None, 3.0])
def test_the_head_is_cross_entropy_and_its_gradient(cap: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from megart.train import head as heads

    monkeypatch.setattr(heads, "BLOCK_BYTES", 4 * 50 * 16)  # 37 rows in blocks of 16
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn((37, 24), generator=generator).requires_grad_()
    weights = torch.randn((50, 24), generator=generator)
    targets = torch.randint(50, (37,), generator=generator)
    share = torch.rand(37, generator=generator)
    verdict = heads.judge(hidden.detach(), weights, targets, share, cap)
    logits = hidden @ weights.T
    if cap:
        logits = torch.tanh(logits / cap) * cap
    loss = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    (loss * share).sum().backward()
    torch.testing.assert_close(verdict.loss, loss.detach())
    torch.testing.assert_close(verdict.gradient, hidden.grad)
    own = logits.gather(1, targets[:, None])[:, 0]
    others = logits.scatter(1, targets[:, None], -math.inf)
    torch.testing.assert_close(verdict.margin, (own - others.amax(dim=1)).detach())


def test_a_field_is_the_head_over_its_own_tokens() -> None:
    from megart.train import head as heads

    generator = torch.Generator().manual_seed(1)
    hidden, weights = torch.randn((5, 8), generator=generator), torch.randn((50, 8), generator=generator)
    targets, share = torch.tensor([7, 3, 49, 7, 20]), torch.full((5,), 0.2)
    whole = heads.judge(hidden, weights, targets, share, near=4)
    assert heads.judge(hidden, weights, targets).gradient is None
    assert whole.near[:, 0].tolist() == (hidden @ weights.T).argmax(dim=1).tolist()
    field = heads.Field(weights, targets, whole.near)
    assert set(field.tokens.tolist()) == {*targets.tolist(), *whole.near.flatten().tolist()} != set(range(50))
    narrow = field.judge(hidden, targets, share)
    torch.testing.assert_close(narrow.margin, whole.margin)  # the rivals are among the nearest
    assert narrow.near.tolist() == whole.near[:, :2].tolist() and (narrow.loss < whole.loss).all()
    field.add(torch.arange(50))
    everything = field.judge(hidden, targets, share)
    torch.testing.assert_close(everything.loss, whole.loss)
    torch.testing.assert_close(everything.gradient, whole.gradient)


def test_only_the_whole_head_says_that_a_memory_is_learnt(tiny_base, monkeypatch: pytest.MonkeyPatch) -> None:
    """Studied under a field that misses the rivals: an examination finds them, and study goes on until none leads."""
    from megart.train import trainer

    monkeypatch.setattr(trainer, "NARROW_FROM", 1)
    monkeypatch.setattr(trainer.Field, "RIVALS", 2)
    base, given = tiny_base("llama"), task(1, 12)
    config = replace(COURSE, stop=True, margin=1.0, max_steps=60, examples_per_step=1)
    widened = []
    add = trainer.Field.add
    monkeypatch.setattr(trainer.Field, "add", lambda self, tokens: (widened.append(len(tokens)), add(self, tokens))[1])
    (result,) = Trainer(base, config).run([given])
    assert result.learnt and result.margin >= 1.0
    assert len(widened) > 1  # the field had to grow
    monkeypatch.setattr(trainer, "NARROW_FROM", 10**9)
    (wide,) = Trainer(base, config).run([given])
    assert wide.learnt and abs(wide.steps - result.steps) < 20


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_a_cut_teaches_the_upper_layers_alone_and_exactly(tiny_base, architecture: str) -> None:
    """Same factors as when the lower layers are run again at every step."""
    base = tiny_base(architecture)
    given = task(2, 9, prompts=(20, 3, 11))
    (result,) = Trainer(base, replace(COURSE, cut=2, max_steps=3)).run([given])
    assert {int(name.split(".")[1]) for name in result.factors} == {2, 3}
    slow = Trainer(base, replace(COURSE, max_steps=3))
    slow.lora = StackedLora(base, [t for t in base.targets if t.layer >= 2], 1, COURSE.rank, COURSE.scale)
    slow.optimizer = LaneAdam(slow.lora)
    (expected,) = slow.run([given])
    assert_same(expected, result, COURSE.rate)


def test_the_lesson_known_least_well_comes_next() -> None:
    from megart.train.trainer import _Lane

    given = Task("t", tuple(Example((), (1,), (2,)) for _ in range(3)), 0)
    lane = _Lane(given, [], 0.0)
    assert lane.picks(replace(COURSE, stop=True)) == [0, 1]
    lane.margins[:] = [0.5, 3.0, -1.0]
    assert lane.picks(replace(COURSE, stop=True)) == [2, 0] and lane.margin == -1.0
    assert lane.picks(replace(COURSE, stop=True, examples_per_step=4)) == [2, 0, 1, 2]
    taken = []
    for lane.step in range(3):
        taken.append(lane.picks(COURSE))
    assert taken == [[0, 1], [2, 0], [1, 2]]
