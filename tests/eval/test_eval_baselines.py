"""Fine-tuning baselines learn, forget less under a penalty, merge their LoRA, and leave the base alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from megart.train.baselines import Baseline, Tuning

FIRST = [((60, 61, 62), (70, 71, 72, 73)), ((60, 63), (74, 75))]
SECOND = [((80, 81), (90, 91, 92, 93)), ((80, 82), (94, 95))]
FULL = {"rate": 3e-3, "passes": 60, "enough": 0.05}
LORA = {"rate": 2e-2, "passes": 80, "enough": 0.05, "rank": 4}


@pytest.mark.parametrize("how", [FULL, LORA])
def test_learns_and_leaves_the_base_alone(how: dict, tiny_base: Callable[..., object]) -> None:
    base = tiny_base()
    before = {name: w.clone() for name, w in base.network.named_parameters()}
    network = Baseline(base, Tuning(**how))
    unknown = network.logprobs(FIRST)
    network.study(FIRST)
    assert min(network.logprobs(FIRST)) > -0.5 > max(unknown)
    said = network.generate([FIRST[0][0], FIRST[1][0]], 4, 73)
    assert (said[0], said[1][:2]) == ([70, 71, 72], [74, 75])
    for name, weight in base.network.named_parameters():
        assert torch.equal(weight, before[name])
    assert not any(module._forward_hooks for module in network.network.modules())
    changed = [n for n, w in network.network.named_parameters() if not torch.equal(w, before[n].float())]
    assert changed and (how is FULL or all("mlp" in name for name in changed))


@pytest.mark.parametrize("how", [FULL, LORA])
@pytest.mark.parametrize("penalty, strength", [("l2", 3.0), ("ewc", 3.0)])
def test_a_penalty_keeps_the_weights_near(
    how: dict, penalty: str, strength: float, tiny_base: Callable[..., object]
) -> None:
    moved = {}
    for name in ("", penalty):
        network = Baseline(tiny_base(), Tuning(**{**how, "passes": 15, "enough": 0.0}, penalty=name, strength=strength))
        network.study(FIRST)
        start = {n: w.detach().clone() for n, w in network.tuned().items()}
        network.study(SECOND)
        moved[name] = sum(float((w.detach() - start[n]).square().sum()) for n, w in network.tuned().items())
    assert moved[penalty] < 0.9 * moved[""]
    if penalty == "ewc":
        assert all((f >= 0).all() for f in network._fisher.values()) and set(network._fisher) <= set(network.tuned())
