"""One base model in llama.cpp: its weights, its vocabulary, its chat template.

Knows nothing about memories, gates or banks.
"""

from __future__ import annotations

import codecs
import ctypes
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import llama_cpp
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from .. import cores
from ..architecture import check_whole_header
from ..errors import InputError, ModelError
from ..models import Model
from . import llama

# A model without a template of its own is spoken to in ChatML, as llama.cpp does.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


Tool = dict[str, Any]  # as OpenAI's API describes one


@dataclass(frozen=True)
class Prompt:
    """A chat rendered to tokens.

    ``body`` is what the base encodes; ``opening`` is the generation prompt, from which an activated
    memory works on. ``span`` marks the tokens of ``body`` that carry the user's own words.
    """

    body: tuple[int, ...]
    opening: tuple[int, ...]
    span: tuple[int, int]

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.body + self.opening


MOST_THREADS = 512  # of one llama.cpp context (GGML_MAX_N_THREADS)


class Engine:
    """The model, shared by every context made from it.

    ``threads`` defaults to the cores this process may use, less those that other programs keep busy
    when a question comes (:meth:`fit_threads`). Raises ModelError when llama.cpp cannot
    load the file, InputError for more threads than it can run.
    """

    def __init__(self, model: Model, *, threads: int | None = None, gpu_layers: int = 0):
        if threads is not None and not 1 <= threads <= MOST_THREADS:
            raise InputError(f"got {threads} threads; expected 1 to {MOST_THREADS}, best no more than there are cores")
        check_whole_header(model.gguf)
        self.model = model
        self.threads = threads or cores.available()
        self._adapts = threads is None
        self.handle: llama_cpp.llama_model_p | None = llama.load(model.gguf, gpu_layers)
        self.vocab = llama_cpp.llama_model_get_vocab(self.handle)
        self.n_embd = llama_cpp.llama_model_n_embd(self.handle)
        self.n_layer = llama_cpp.llama_model_n_layer(self.handle)
        self.architecture = self.metadata("general.architecture") or ""
        self.context_length = llama_cpp.llama_model_n_ctx_train(self.handle)
        self.lock = threading.RLock()
        self._templates = self._formatters()

    def metadata(self, key: str) -> str | None:
        """A scalar of the GGUF's metadata as text, None where absent."""
        size = 1 << 10
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = llama_cpp.llama_model_meta_val_str(self.handle, key.encode(), buffer, size)
            if length < size:
                return buffer.value.decode("utf-8", "replace") if length >= 0 else None
            size = length + 1

    # -- words and tokens -------------------------------------------------------------------

    def tokenize(self, text: str, *, special: bool = True, bos: bool = False) -> list[int]:
        """Token ids of *text*; ``special`` reads control tokens, ``bos`` adds what the model adds."""
        return llama.tokenize(self.vocab, text, special=special, bos=bos)

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; control tokens give none."""
        buffer = ctypes.create_string_buffer(256)
        count = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, 256, 0, False)
        return buffer.raw[: max(count, 0)]

    def ends(self, tokens: Sequence[int], text: str | None = None) -> list[int]:
        """Where each of *tokens* ends in the text that they stand for, in whole characters.

        ``text``: what was tokenized; a vocabulary of SentencePiece puts a space before it, which is not counted.
        """
        decoder, ends = self.decoder(), []
        spaced = text is not None and tokens and not text.startswith(" ") and self.piece(tokens[0]).startswith(b" ")
        length = -1 if spaced else 0
        for token in tokens:
            length += len(decoder.decode(self.piece(token)))
            ends.append(length)
        return ends

    def detokenize(self, tokens: Iterable[int]) -> str:
        return b"".join(map(self.piece, tokens)).decode("utf-8", "replace")

    def decoder(self) -> codecs.IncrementalDecoder:
        """Turns pieces into text as they come, holding back half a character."""
        return codecs.getincrementaldecoder("utf-8")("replace")

    def is_end(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token))

    @cached_property
    def end_of_turn(self) -> int:
        """The token with which the chat template ends an assistant's turn, else EOS, else EOT.

        llama.cpp's own EOT is whichever known name its hash table brings first: on SmolLM2
        <|endoftext|>, although the model ends its turns with <|im_end|>.
        """
        content = "megart"
        turn = [{"role": "user", "content": "?"}, {"role": "assistant", "content": content}]
        ending = self._render(turn, False).rpartition(content)[2]
        for token in self.tokenize(ending, special=True):
            if self.is_end(token):
                return token
        for find in (llama_cpp.llama_vocab_eos, llama_cpp.llama_vocab_eot):
            token = find(self.vocab)
            if token >= 0:
                return token
        raise ModelError(f"{self.model.name}: the vocabulary has no end-of-turn token")

    # -- chat -----------------------------------------------------------------------------

    def prompt(
        self, messages: Sequence[dict[str, str]], span: tuple[int, int] | None = None, tools: Sequence[Tool] = ()
    ) -> Prompt:
        """Render *messages* through the model's own chat template, which shows *tools* where it has a place for them.

        ``span`` gives the characters of the last message's content that are the user's own words
        (default: all of it); they come back as a token span.
        """
        if any(map(self._has_control, (message["content"] for message in messages))):
            return self._guarded(messages, span, tools)
        body_text, full_text = (self._render(messages, grow, tools) for grow in (False, True))
        body, full = (self._encode(text) for text in (body_text, full_text))
        # Templates without a generation prompt (Mistral's) answer after the end of the user's turn: its last
        # token is the opening, which an answer needs to be decoded from, and a memory to begin at.
        shared = min(common(body, full), len(full) - 1)
        content = messages[-1]["content"].strip()
        start = self._place(messages, body_text, content, tools)
        first, last = span or (0, len(content))
        if start < 0:  # a template that rewrites content: the whole body stands for it
            return Prompt(tuple(full[:shared]), tuple(full[shared:]), (0, shared))
        # A space in front of the words may be a token by itself there, and a part of the first word's here.
        before = common(self._encode(full_text[: start + first]), full)
        upto = len(self._encode(full_text[: start + last]))
        return Prompt(tuple(full[:shared]), tuple(full[shared:]), (before, min(upto, shared)))

    def _has_control(self, text: str) -> bool:
        """Whether *text* holds the name of a control token, such as <|im_end|>."""
        return self.tokenize(text, special=True) != self.tokenize(text, special=False)

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the model's chat template has a place for tools."""
        return "tools" in (self.metadata("tokenizer.chat_template") or "")

    def _guarded(
        self, messages: Sequence[dict[str, str]], span: tuple[int, int] | None, tools: Sequence[Tool]
    ) -> Prompt:
        """:meth:`prompt` of messages that hold names of control tokens: only the template's own are control tokens."""
        mark = next(c for c in map(chr, range(0xE000, 0xF8FF)) if not any(c in m["content"] for m in messages))
        marked = [{**message, "content": f"{mark}{message['content'].strip()}{mark}"} for message in messages]
        tokens, places = self._encode_parts(self._render(marked, True, tools).split(mark))
        alone = self._encode_parts(self._render(marked, False, tools).split(mark))[0]
        shared = min(common(alone, tokens), len(tokens) - 1)
        first, last = places[-1] if places else (0, shared)
        if span and places:
            content = messages[-1]["content"].strip()
            sizes = [len(self.tokenize(content[:end], special=False)) for end in span]
            first, last = first + sizes[0], min(last, first + sizes[1])
        return Prompt(tuple(tokens[:shared]), tuple(tokens[shared:]), (first, min(last, shared)))

    def _encode_parts(self, parts: Sequence[str]) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens of the template's text and users' text in turn, and where those of each user's text are."""
        tokens, places = self._encode(parts[0]), []
        for number, part in enumerate(parts[1:], start=1):
            start = len(tokens)
            tokens += self.tokenize(part, special=number % 2 == 0)
            if number % 2:
                places.append((start, len(tokens)))
        return tokens, places

    def next_turn(self, question: str) -> list[int]:
        """The tokens that end an assistant's turn, put *question* as the user's next one, and open the answer to it.

        *question* is ordinary text whatever it holds. Raises ModelError where the template has no such turns.
        """
        before, after = self._seams
        return [*before, *self.tokenize(question, special=False), *after]

    @property
    def next_turn_opening(self) -> list[int]:
        """The tokens that end an assistant's turn and open the user's next one."""
        return [*self._seams[0]]

    @cached_property
    def _seams(self) -> tuple[list[int], list[int]]:
        """What stands between an assistant's turn and the user's next words, and between these and the answer."""
        answer, asked = "\ue001", "\ue002"
        turns = [("user", "?"), ("assistant", answer), ("user", asked)]
        rendered = self._render([{"role": role, "content": content} for role, content in turns], True)
        before, _, after = rendered.partition(answer)[2].partition(asked)
        if not before:
            raise ModelError(f"{self.model.name}: its chat template has no turns of an assistant")
        return self.tokenize(before), self.tokenize(after)

    def _place(self, messages: Sequence[dict[str, str]], rendered: str, content: str, tools: Sequence[Tool]) -> int:
        """Where the last message's *content* begins in *rendered*, -1 where it is rewritten."""
        if rendered.count(content) < 2:
            return rendered.find(content)
        # The same words stand in the history, or in the template itself: a mark tells them apart.
        mark = "\ue000"
        marked = self._render([*messages[:-1], {**messages[-1], "content": content + mark}], False, tools)
        return marked.rfind(mark) - len(content) if mark in marked else -1

    def _encode(self, text: str) -> list[int]:
        bos = self.token_text(llama_cpp.llama_vocab_bos(self.vocab))
        return self.tokenize(text, special=True, bos=not (bos and text.startswith(bos)))

    def token_text(self, token: int) -> str:
        """As the vocabulary has it, a control token's name too; "" for none."""
        text = llama_cpp.llama_vocab_get_text(self.vocab, token) if token >= 0 else None
        return text.decode("utf-8", "replace") if text else ""

    def _formatters(self) -> tuple[Jinja2ChatFormatter, Jinja2ChatFormatter]:
        template = self.metadata("tokenizer.chat_template") or CHATML
        eos, bos = (self.token_text(f(self.vocab)) for f in (llama_cpp.llama_vocab_eos, llama_cpp.llama_vocab_bos))
        make = [Jinja2ChatFormatter(template, eos, bos, add_generation_prompt=grow) for grow in (False, True)]
        return make[0], make[1]

    def _render(self, messages: Sequence[dict[str, str]], grow: bool, tools: Sequence[Tool] = ()) -> str:
        try:
            written: Any = list(messages)  # of roles that llama_cpp types one by one
            shown: Any = list(tools) or None
            return self._templates[grow](messages=written, tools=shown).prompt
        except Exception as error:  # a template is a program: it may raise anything
            raise ModelError(f"{self.model.name}: its chat template refused the messages: {error}") from error

    def fit_threads(self) -> int:
        """How many threads the next question should use; settles it in ``threads`` unless the user has.

        llama.cpp's threads wait for each other after every operation: one that shares its core with
        another program holds up all of them, and two threads become slower than one.
        """
        if self._adapts:
            self.threads = cores.free()
        return self.threads

    def close(self) -> None:
        if self.handle:
            llama_cpp.llama_model_free(self.handle)
            self.handle = None


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(one, other)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
