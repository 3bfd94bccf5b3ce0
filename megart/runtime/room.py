"""A conversation that has outgrown the model's context goes on without its oldest turns."""

from __future__ import annotations

from dataclasses import replace

from ..errors import InputError
from .engine import Engine
from .request import Message, Request

# Messages that are left out together: the next turns then begin with the same words, and these need not be read again.
STEP = 8
# Tokens that an answer may need, and at least as many bytes as a chat template puts around a message.
_ANSWER, _AROUND = 256, 64


class TooLongError(InputError):
    """A question that is longer than the model can read."""


def fitting(request: Request, engine: Engine, size: int) -> Request:
    """*request* with as much of its history as a context of *size* tokens holds beside question and answer.

    System messages stay. Raises TooLongError where they and the question alone are too long.
    """
    begun = len(engine.tokenize(request.begun, special=False)) if request.begun else 0
    most = size - min(request.options.max_tokens, _ANSWER, size // 4) - begun
    question: Message = {"role": "user", "content": request.worded()[0]}
    system = [message for message in request.history if message["role"] == "system"]
    talk = [message for message in request.history if message["role"] != "system"]
    for first in range(0, len(talk) + STEP, STEP):
        messages = [*system, *talk[first:], question]
        # No token is less than a byte.
        length = sum(len(message["content"].encode()) + _AROUND for message in messages)
        if length > most or request.tools:
            length = len(engine.prompt(messages, tools=request.tools).tokens)
        if length <= most:
            return request if not first else replace(request, history=messages[:-1])
    raise TooLongError(f"got a question of {length} tokens, its system message with it; expected at most {most}")
