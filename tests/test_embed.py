"""Which layer the gate reads."""

from __future__ import annotations

import pytest

from megart.runtime.embed import pick_layer


@pytest.mark.parametrize(("n_layer", "layer"), [(30, 2), (4, 2), (3, 1), (2, 0), (1, 0)])
def test_a_shallow_model_is_not_read_at_its_last_layer(n_layer: int, layer: int) -> None:
    """There llama.cpp computes only the tokens whose logits were asked for."""
    assert pick_layer(n_layer) == layer
