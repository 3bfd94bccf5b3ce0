"""What the server says to requests that it cannot take: OpenAI's shape, one line. No model is needed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from megart.errors import MemoryNotFoundError

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx2")

from megart.serve import answers  # noqa: E402
from megart.serve.app import make_app  # noqa: E402


class Empty:
    """A desk without banks, and with a fault."""

    is_loaded, models = True, ["smollm2:notes"]

    def find(self, model: str) -> Any:
        raise MemoryNotFoundError(f"no model {model!r}; there are: {', '.join(self.models)}")

    def to_remember(self, _ask: object) -> None:
        return None

    start = tools = about = lambda self, _: {}["a word of a note"]


def told(method: str, path: str, status: int, **how: Any) -> dict[str, Any]:
    """The error that the server answers with."""

    async def call() -> Any:
        transport = httpx.ASGITransport(app=make_app(Empty()), raise_app_exceptions=False)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.request(method, path, **how)

    answer = asyncio.run(call())
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] and "\n" not in error["message"]
    assert 0 < len(error["message"]) <= answers.MOST_TOLD + 5
    return error


ASK = {"model": "gpt-4", "messages": [{"role": "user", "content": "Hello"}]}


async def in_parts(body: bytes, times: int = 1) -> AsyncIterator[bytes]:
    for _ in range(times):
        yield body


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": 1}{"a": 1}', b"1" * 5000])
def test_what_is_no_json_object(body: bytes) -> None:
    assert "no JSON" in told("POST", "/v1/chat/completions", 400, content=body)["message"]


def test_an_unknown_model_a_wrong_path_and_a_wrong_method() -> None:
    assert "smollm2:notes" in told("GET", "/tokenizer_info?model=gpt-4", 404)["message"]
    assert "/v2" in told("POST", "/v2", 404, json=ASK)["message"]
    assert "PUT" in told("PUT", "/v1/models", 405)["message"]


def test_a_query_of_the_wrong_type_is_named() -> None:
    error = told("GET", "/v1/memories?limit=many", 400)
    assert error["param"] == "limit" and "'many'" in error["message"]


def test_a_fault_of_ours_tells_no_word_of_a_note() -> None:
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions")):
        error = told(method, path, 500, json=ASK)
        assert "KeyError" in error["message"] and "note" not in error["message"] and error["type"] == "server_error"


def test_an_error_does_not_say_again_all_that_was_sent() -> None:
    message = told("POST", "/v1/chat/completions", 400, json={**ASK, "n": "x" * 5000})["message"]
    assert message.startswith("got n 'xxx") and message.endswith("expected 1 to 8")


@pytest.mark.parametrize(
    "change", [{"stop": 5}, {"max_tokens": float("inf")}, {"max_tokens": 10**30}, {"n": [1]}, {"megart": [1]}], ids=str
)
def test_options_of_the_wrong_type(change: dict[str, Any]) -> None:
    body = json.dumps({**ASK, **change}).encode()
    assert told("POST", "/v1/chat/completions", 400, content=body)["message"].startswith("got ")


def test_a_body_in_parts_is_read_up_to_the_limit() -> None:
    body = json.dumps({**ASK, "n": 9}).encode()
    assert "got n 9" in told("POST", "/v1/chat/completions", 400, content=in_parts(body))["message"]
    error = told("POST", "/v1/chat/completions", 413, content=in_parts(b" " * (1 << 20), 3))
    assert error["code"] == "too_large" and str(answers.MOST_BODY) in error["message"]


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    monkeypatch.setattr(answers, "BODY_SECONDS", 0.1)
    assert "did not come whole" in told("POST", "/v1/chat/completions", 400, content=slow())["message"]


def test_half_of_an_emoji_is_taken() -> None:
    message = told("POST", "/tokenize", 404, content=b'{"prompt": "cut \\ud83d", "model": "\\uD83D"}')["message"]
    assert "no model '?'" in message


@pytest.mark.parametrize("origin", ["http://[evil", "null", "http://evil.example", "localhost"])
def test_a_page_of_another_site_is_refused_whatever_it_calls_itself(origin: str) -> None:
    assert "may not call" in told("POST", "/v1/chat/completions", 403, json=ASK, headers={"Origin": origin})["message"]
