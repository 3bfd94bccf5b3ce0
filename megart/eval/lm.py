"""megart as a model of EleutherAI's lm-evaluation-harness, with or without a bank.

    python -m megart.eval.lm --model megart --model_args bank=notes --tasks arc_easy

is ``lm_eval`` with this model registered; model_args: ``bank`` (a folder; without it the bare base),
``model``, ``gate`` ("on", or "off" for the bare base over the same bank), ``max_gen_toks``, ``n_ctx``, ``threads``.
Requests are read as they come, without a chat template unless ``--apply_chat_template`` is given.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..bank import Bank
from ..errors import DependencyError, InputError
from ..models import resolve_model
from ..runtime import score
from ..runtime.assistant import Assistant
from ..runtime.engine import Prompt

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise DependencyError(
        f"the harness is not installed ({error.name} is missing); run: pip install 'megart[lm-eval]'"
    ) from error


@register_model("megart")
class MegartLM(LM):
    """Log-likelihoods and generation through llama.cpp, the gate open unless ``gate=off``."""

    def __init__(
        self, bank: str | None = None, model: str | None = None, gate: str = "on", max_gen_toks: int = 128,
        n_ctx: int = 2048, threads: int | None = None, batch_size: Any = None, device: Any = None, **other: Any,
    ):  # fmt: skip
        super().__init__()
        if other:
            raise InputError(
                f"got the model argument {min(other)!r}; expected bank, model, gate, max_gen_toks, n_ctx, threads"
            )
        if gate not in ("on", "off"):
            raise InputError(f'got gate={gate}; expected "on" or "off"')
        self._folder = None
        if bank is None:
            self._folder = tempfile.TemporaryDirectory(prefix="megart-")
            self.bank = Bank.create(Path(self._folder.name) / "bank", resolve_model(model))
        else:
            self.bank = Bank.open(bank)
        self.assistant = Assistant(self.bank, model=model, context_size=int(n_ctx), threads=threads and int(threads))
        self.engine = self.assistant.engine
        self.max_gen_toks = int(max_gen_toks)
        self.under = score.GATE if gate == "on" and bank is not None else None
        # Chats are rendered by the model's own template; what stood before the generation prompt is remembered.
        self._chats: dict[str, Prompt] = {}

    @property
    def tokenizer_name(self) -> str:
        return self.engine.model.name

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        text = self.engine._render(chat_history, add_generation_prompt)
        if add_generation_prompt:
            self._chats[text] = self.engine.prompt(chat_history)
        return text

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        # Requests with one context stand together, so that they share its KV cache.
        by_context: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            by_context.setdefault(request.args[0], []).append(index)
        likelihoods: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for context, indices in by_context.items():
            pairs = [self._pair(context, requests[i].args[1]) for i in indices]
            for prompt in {pair[0] for pair in pairs}:
                own = [(i, words) for i, (p, words) in zip(indices, pairs, strict=True) if p == prompt]
                scored = score.score(self.assistant, prompt, [words for _, words in own], memories=self.under)
                for (i, _), one in zip(own, scored.scores, strict=True):
                    likelihoods[i] = (one.logprob, one.greedy)
        return likelihoods

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        totals = []
        for request in requests:
            tokens = self.engine.tokenize(request.args[0], special=False)
            windows = get_rolling_token_windows(
                token_list=tokens, prefix_token=self._prefix(), max_seq_len=self.assistant.base.size - 1, context_len=1
            )
            total = 0.0
            for context, words in map(make_disjoint_window, windows):
                prompt = score.tokens_prompt(context)
                total += score.score(self.assistant, prompt, [words], memories=self.under).scores[0].logprob
            totals.append(total)
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        texts = []
        for request in requests:
            context, options = request.args
            until = options.get("until") or []
            stop = [until] if isinstance(until, str) else list(until)
            limit = int(options.get("max_gen_toks", self.max_gen_toks))
            prompt = self._chats.get(context) or self._plain(context, room=limit)
            generation, _ = score.generate(self.assistant, prompt, self.under, limit, [s for s in stop if s])
            texts.append(generation.text)
        return texts

    def _pair(self, context: str, words: str) -> tuple[Prompt, list[int]]:
        """A prompt and the continuation's tokens, cut where the harness's own models cut them."""
        if context in self._chats:
            return self._chats[context], self.engine.tokenize(words, special=False)
        blanks = len(context) - len(context.rstrip())
        if blanks:
            context, words = context[:-blanks], context[-blanks:] + words
        if not context:
            return score.tokens_prompt([self._prefix()]), self.engine.tokenize(words, special=False)
        head = self.engine.tokenize(context, special=True, bos=True)
        tail = self.engine.tokenize(context + words, special=True, bos=True)[len(head) :]
        room = self.assistant.base.size - len(tail) - 1
        return score.tokens_prompt(head[-room:]), tail

    def _plain(self, context: str, room: int) -> Prompt:
        tokens = self.engine.tokenize(context, special=True, bos=True) or [self._prefix()]
        return score.tokens_prompt(tokens[-(self.assistant.base.size - room - 1) :])

    def _prefix(self) -> int:
        """What stands before a text that has no context."""
        return (self.engine.tokenize("", bos=True) or [self.engine.end_of_turn])[0]


def main() -> None:
    """The harness's own command line, with the model megart known to it."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
