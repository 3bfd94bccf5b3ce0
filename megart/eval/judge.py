"""An optional judge: a language model behind any OpenAI-compatible endpoint says whether an answer is right.

The key, where one is needed, comes from the environment variable MEGART_JUDGE_KEY.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence

from ..errors import MegartError

_PROMPT = (
    "Question: {question}\nReference answers: {answers}\nGiven answer: {text}\n\n"
    "Does the given answer agree with one of the reference answers? Reply with yes or no only."
)


class Judge:
    """``judge(question, answers, text)`` is 1.0 (right) or 0.0."""

    def __init__(self, endpoint: str, model: str = "default", timeout: float = 60.0):
        base = endpoint.rstrip("/")
        self.url = base if base.endswith("/chat/completions") else f"{base}/chat/completions"
        self.model, self.timeout = model, timeout

    def __call__(self, question: str, answers: Sequence[str], text: str) -> float:
        """Raises MegartError when the endpoint cannot be reached or answers neither yes nor no."""
        content = _PROMPT.format(question=question, answers="; ".join(answers), text=text.strip() or "(nothing)")
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": 8,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("MEGART_JUDGE_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                verdict = json.load(reply)["choices"][0]["message"]["content"]
        except (urllib.error.URLError, TimeoutError, ValueError, KeyError, IndexError, TypeError) as error:
            raise MegartError(f"the judge at {self.url} did not answer: {error}") from None
        word = str(verdict).strip().lower().lstrip("*\"' ")
        if word.startswith("yes"):
            return 1.0
        if word.startswith("no"):
            return 0.0
        raise MegartError(f"the judge at {self.url} said {verdict!r}; expected yes or no")
