"""Conversations that have outgrown the model's context."""

from __future__ import annotations

import pytest

from megart.runtime.engine import Engine
from megart.runtime.request import Message, Request
from megart.runtime.room import STEP, TooLongError, fitting
from megart.runtime.sampling import SamplingOptions

SIZE = 2048


@pytest.fixture(scope="module")
def engine(tiny):  # type: ignore[no-untyped-def]
    made = Engine(tiny(), threads=1)
    yield made
    made.close()


def asked(history: list[Message], question: str = "And now?", tokens: int = 64) -> Request:
    return Request("ask", question, history, SamplingOptions(max_tokens=tokens))


def talk(turns: int) -> list[Message]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": f"{n} " + "Some words about rain and boats. "} for n in range(turns)]


def test_a_short_talk_is_left_as_it_is(engine: Engine) -> None:
    request = asked(talk(2))
    assert fitting(request, engine, SIZE) is request


def test_the_oldest_turns_go_and_the_system_message_stays(engine: Engine) -> None:
    system: Message = {"role": "system", "content": "Be brief."}
    history = [system, *talk(120)]
    kept = fitting(asked(history), engine, SIZE).history
    assert kept[0] == system and kept[1:] == history[-len(kept) + 1 :] and 2 < len(kept) < 120
    length = len(engine.prompt([*kept, {"role": "user", "content": asked([]).worded()[0]}]).tokens)
    assert length <= SIZE - 64
    left_out = 121 - len(kept)
    assert left_out % STEP == 0
    # Two turns on the talk still begins where it did: what was read of it stays read.
    longer = fitting(asked([*history, *talk(2)]), engine, SIZE).history
    assert longer[1] in (kept[1], history[1 + left_out + STEP])


def test_a_question_that_alone_is_too_long_is_an_error(engine: Engine) -> None:
    with pytest.raises(TooLongError, match="expected at most 1984"):
        fitting(asked(talk(4), "rain " * 3000), engine, SIZE)
