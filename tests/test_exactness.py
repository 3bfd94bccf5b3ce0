"""What is trained is what is deployed: an adapter gives the same logits in PyTorch and in llama.cpp."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import FAST_ROLES, PAPER_ROLES, Stock, noise, save, seat

from megart.adapter import Adapter, read_adapter, write_adapter
from megart.models import Model
from megart.recipes import RECIPES, Recipe
from megart.runtime.context import Context
from megart.runtime.engine import Engine
from megart.runtime.slot import Slot

torch = pytest.importorskip("torch")
DynamicCache = pytest.importorskip("transformers").DynamicCache

from megart.memorize import train_config
from megart.train.base import with_cache
from megart.train.export import to_adapter
from megart.train.lora import StackedLora
from megart.train.trainer import Example, Task, Trainer

ARCHITECTURES = ("llama", "qwen2", "qwen3")
# Rank 16 instead of the paper's 128: sqrt(r) is 4, and a tiny model is not swamped.
SMALL = {
    # Every projection of every layer: what a recipe may ask for, not only what it asks for today.
    "fast": replace(RECIPES["direct"], roles=FAST_ROLES, layers=1.0, alpha=8.0),
    "paper": replace(RECIPES["paper"], rank=16, alpha=16.0, rate=3e-3),
}
CLOSE = 2e-4  # of logits whose standard deviation is 2


@contextmanager
def runtime(model: Model, size: int = 512) -> Iterator[tuple[Engine, Context, Context]]:
    """An engine, a context for the bare base and one for the mix."""
    engine = Engine(model)
    base, mix = Context(engine, size=size), Context(engine, size=size)
    try:
        yield engine, base, mix
    finally:
        base.close()
        mix.close()
        engine.close()


def example(engine: Engine, recipe: Recipe, text: str = "Orrin keeps three grey cats.") -> Example:
    prompt = engine.prompt([{"role": "user", "content": "Tell me about Orrin."}])
    target = (*engine.tokenize(text, special=False), engine.end_of_turn)
    if recipe.activated:
        return Example(prompt.body, prompt.opening, target)
    return Example((), prompt.tokens, target)


def in_pytorch(base, factors, recipe: Recipe, given: Example) -> np.ndarray:
    """Logits after every token of opening and target, by the training's own arithmetic."""
    targets = [t for t in base.targets if t.role in recipe.roles]
    lora = StackedLora(base, targets, 1, recipe.rank, recipe.scale)
    lora.load_lane(0, factors)
    past = with_cache(base.network, DynamicCache(config=base.network.config))
    with torch.no_grad(), lora.attached(base.network):
        if given.prompt:
            base.network(torch.tensor([given.prompt]), **past)
        with lora.use(1):
            ids = torch.tensor([given.opening + given.target])
            return base.network(ids, **past).logits[0].float().numpy()


def in_llama_cpp(
    engine: Engine,
    base: Context,
    mix: Context,
    adapter: Adapter | None,
    given: Example,
    kind: str = "f32",
) -> np.ndarray:
    """The same logits through megart's runtime; ``adapter`` None is the bare base."""
    slot = Slot(mix, kind=kind)
    try:
        if adapter is not None:
            slot.install([adapter], [1.0])
        mix.truncate(0)
        if given.prompt:
            base.advance(given.prompt)
            base.copy_to(mix)
        rows = []
        # Opening in one batch as in use; its last logits predict the first token of the target.
        mix.decode(given.opening)
        rows.append(mix.logits())
        for token in given.target:
            mix.decode([token])
            rows.append(mix.logits())
        return np.stack(rows)
    finally:
        slot.close()


def through_a_file(adapter: Adapter, path: Path) -> Adapter:
    return read_adapter(save(adapter, path))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_trained_adapter_gives_the_same_logits(
    tiny, tiny_base, exact: None, tmp_path: Path, arch: str, name: str
) -> None:
    recipe, base = SMALL[name], tiny_base(arch)
    with runtime(tiny(arch)) as (engine, bare, mix):
        given = example(engine, recipe)
        studies = replace(
            train_config(recipe, n_layer=base.n_layer, lanes=1), max_steps=12, rate=1e-2, decay=False, stop=False
        )
        (result,) = Trainer(base, studies).run([Task("t", (given,), 1)])
        exported = to_adapter(result.factors, architecture=base.architecture, scale=recipe.scale, dtype=np.float32)
        adapter = through_a_file(exported, tmp_path / "a.gguf")
        first = len(given.opening) - 1
        expected = in_pytorch(base, result.factors, recipe, given)[first:]
        got = in_llama_cpp(engine, bare, mix, adapter, given)
        without = in_llama_cpp(engine, bare, mix, None, given)

        np.testing.assert_allclose(got, expected, atol=CLOSE)
        assert abs(without - expected).max() > 1  # it learnt something, so there was something to see
        # The traps: had the file carried another scale, or the adapter worked elsewhere, it would show.
        weak = replace(adapter, alpha=adapter.alpha / math.sqrt(recipe.rank))
        assert abs(in_llama_cpp(engine, bare, mix, weak, given) - expected).max() > 1000 * CLOSE
        if recipe.activated:
            everywhere = Example((), given.prompt + given.opening, given.target)
            wrong = in_llama_cpp(engine, bare, mix, adapter, everywhere)
            assert abs(wrong - expected).max() > 1000 * CLOSE


@pytest.mark.parametrize("name", SMALL)
def test_stock_llama_cpp_applies_the_file_at_the_trained_scale(
    tiny, tiny_base, exact: None, tmp_path: Path, name: str
) -> None:
    recipe, base = SMALL[name], tiny_base("llama")
    shapes = {t.name: (t.module.in_features, t.module.out_features) for t in base.targets}
    factors = noise({n: s for n, s in shapes.items() if n.split(".")[2] in recipe.roles}, recipe.rank, 5)
    exported = to_adapter(factors, architecture="llama", scale=recipe.scale, dtype=np.float32)
    path = save(exported, tmp_path / "a.gguf")
    tokens = tuple(range(60, 90))
    expected = in_pytorch(base, factors, recipe, Example((), tokens, ()))[-1]
    with Stock(tiny("llama"), [(path, 1.0)]) as stock:
        np.testing.assert_allclose(stock.decode(tokens), expected, atol=CLOSE)
    weak = replace(exported, alpha=exported.alpha / math.sqrt(recipe.rank))
    with Stock(tiny("llama"), [(save(weak, tmp_path / "b.gguf"), 1.0)]) as stock:
        assert abs(stock.decode(tokens) - expected).max() > 1000 * CLOSE


@pytest.mark.parametrize("cut", [0, 1, 3])
@pytest.mark.parametrize("activated", [True, False])
def test_the_lessons_loss_is_the_runtimes_loss(tiny, tiny_base, exact: None, activated: bool, cut: int) -> None:
    """Masks, positions, the prompts' cache and the cut: examples of unlike lengths beside each other."""
    base = tiny_base("qwen3")
    recipe = replace(SMALL["fast"], activated=activated)
    studies = replace(train_config(recipe, n_layer=base.n_layer, lanes=2), examples_per_step=2, cut=cut)
    trainer = Trainer(base, studies)
    shapes = {t.name: s for t, s in zip(base.targets, _shapes(base, FAST_ROLES).values()) if t.layer >= cut}
    factors = [noise(shapes, recipe.rank, seed, 0.5) for seed in (1, 2)]
    with runtime(tiny("qwen3")) as (engine, bare, mix):
        short = example(engine, recipe, "Ada.")
        examples = [
            [example(engine, recipe), short],
            [short if not activated else Example((), short.prompt + short.opening, short.target)] * 2,
        ]
        for lane in (0, 1):
            trainer.lora.load_lane(lane, factors[lane])
        lanes = [seat(trainer, Task(str(lane), tuple(examples[lane]), 0)) for lane in (0, 1)]
        with torch.no_grad(), trainer.lora.attached(base.network), trainer.lora.use(2):
            passes = [trainer._pass([(lane, column) for lane in lanes]) for column in (0, 1)]
        losses, margins = (torch.stack(each).T.reshape(-1) for each in zip(*passes, strict=True))
        for row, given in enumerate([*examples[0], *examples[1]]):
            adapter = to_adapter(factors[row // 2], architecture="qwen3", scale=recipe.scale, dtype=np.float32)
            logits = in_llama_cpp(engine, bare, mix, adapter, given)[:-1].astype(np.float64)
            own = logits[np.arange(len(given.target)), given.target]
            loss = (np.log(np.exp(logits).sum(axis=1)) - own).mean()
            logits[np.arange(len(given.target)), given.target] = -np.inf
            assert losses[row].item() == pytest.approx(loss, abs=CLOSE)
            assert margins[row].item() == pytest.approx((own - logits.max(axis=1)).min(), abs=2 * CLOSE)


def test_half_precision_files_keep_the_scale_and_round_little(tiny_base) -> None:
    factors = noise(_shapes(tiny_base("llama"), PAPER_ROLES), 16, 3)
    adapter = to_adapter(factors, architecture="llama", scale=4.0)
    assert adapter.alpha == 64 and adapter.scale("blk.0.ffn_up.weight") == 4.0
    for name, (a, b) in factors.items():
        assert adapter.tensors[name][0].dtype == np.float16
        np.testing.assert_allclose(adapter.tensors[name][0], a, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(adapter.tensors[name][1], b, rtol=1e-3, atol=1e-6)
    assert write_adapter(adapter)[:4] == b"GGUF"


@pytest.mark.parametrize("name", SMALL)
def test_the_real_model_agrees_within_its_own_noise(smollm2: Model, smollm2_base, tmp_path: Path, name: str) -> None:
    """Q4_1 in llama.cpp rounds activations too: with an adapter the two may differ no more than without."""
    recipe, base = SMALL[name], smollm2_base
    factors = noise(_shapes(base, recipe.roles), recipe.rank, 7, 0.8 / recipe.scale)
    with runtime(smollm2) as (engine, bare, mix):
        given = example(engine, recipe)
        first = len(given.opening) - 1
        exported = to_adapter(factors, architecture="llama", scale=recipe.scale)
        adapter = through_a_file(exported, tmp_path / "a.gguf")
        zero = {n: (a, np.zeros_like(b)) for n, (a, b) in factors.items()}
        plain = in_pytorch(base, zero, recipe, given)[first:]
        noise_floor = _rms(in_llama_cpp(engine, bare, mix, None, given) - plain)
        expected = in_pytorch(base, factors, recipe, given)[first:]
        got = in_llama_cpp(engine, bare, mix, adapter, given, "f16")
        effect = _rms(expected - plain)
        assert effect > 5 * noise_floor
        assert _rms(got - expected) < 1.5 * noise_floor
        weak = replace(adapter, alpha=adapter.alpha / math.sqrt(recipe.rank))
        assert _rms(in_llama_cpp(engine, bare, mix, weak, given, "f16") - expected) > 4 * noise_floor
        if recipe.activated:
            everywhere = Example((), given.prompt + given.opening, given.target)
            wrong = in_llama_cpp(engine, bare, mix, adapter, everywhere, "f16")
            assert _rms(wrong - expected) > 4 * noise_floor


def _shapes(base, roles: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    return {t.name: (t.module.in_features, t.module.out_features) for t in base.targets if t.role in roles}


def _rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(difference, dtype=np.float64))))
