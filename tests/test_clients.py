"""What known clients send, word for word where it was recorded, else written from what they are known to send.

``client_requests.json``: openai, llm, lm-eval and Open WebUI were run against this server and recorded (Open WebUI's
prompts cut short); the others were not run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megart import Bank, Memory, memorize
from megart.models import Model

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx2")

from serving import listening  # noqa: E402

from megart.serve import side  # noqa: E402
from megart.serve.desk import Desk  # noqa: E402

REQUESTS = json.loads((Path(__file__).parent / "client_requests.json").read_text("utf-8"))
NOTES = [
    Memory("The spare key of the boathouse hangs behind the blue oar.", id="key", title="Boathouse"),
    Memory("The kiln reaches 1240 degrees; order number of its element is KL-4471.", id="kiln", title="Kiln"),
]


@pytest.fixture(scope="module")
def served(smollm2: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    with Bank.create(tmp_path_factory.mktemp("clients") / "notes", smollm2) as bank:
        memorize(bank, NOTES, later=True)
        with listening(Desk([bank], threads=1)) as url, httpx.Client(base_url=url, timeout=120) as http:
            yield SimpleNamespace(http=http)


def events(text: str) -> list[dict[str, Any]]:
    """The events of a stream, or the lines of Ollama's, or the one object of a whole answer."""
    if text.startswith("{"):
        return [json.loads(line) for line in text.splitlines()]
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def said(found: list[dict[str, Any]]) -> str:
    """All that was answered, in whichever API."""
    parts = []
    for one in found:
        for choice in one.get("choices", ()):
            message = choice.get("delta") or choice.get("message") or {}
            parts.append(message.get("content") or choice.get("text") or "")
        parts.append((one.get("message") or {}).get("content", ""))
        parts.append(one.get("delta", "") if one.get("type") == "response.output_text.delta" else "")
        if one.get("object") == "response":
            parts += [part["text"] for item in one["output"] for part in item["content"]]
    return "".join(parts)


def ours(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The object `megart` of an answer."""
    return next(one["megart"] for one in reversed(found) if one.get("megart"))


@pytest.mark.parametrize("sent", REQUESTS, ids=[f"{r['client']}-{n}" for n, r in enumerate(REQUESTS)])
def test_a_client_gets_what_it_expects(served: SimpleNamespace, sent: dict[str, Any]) -> None:
    answer = served.http.request(sent["method"], sent["path"], json=sent["body"], headers=sent["headers"])
    assert answer.status_code == 200, answer.text
    found, expect = events(answer.text), sent["expect"]
    streamed = bool((sent["body"] or {}).get("stream")) and not sent["path"].startswith("/api")
    assert answer.headers["content-type"].startswith("text/event-stream") == streamed
    if streamed and sent["path"] != "/v1/responses":
        assert answer.text.rstrip().endswith("data: [DONE]")
    match expect:
        case "key":
            assert "behind the blue oar" in said(found)
        case "kiln":
            assert "KL-4471" in said(found)
        case "side":
            usage = next(one["usage"] for one in reversed(found) if one.get("usage"))
            assert ours(found)["sources"] == [] and usage["completion_tokens"] <= side.TOKENS
        case "bare":
            assert ours(found)["sources"] == [] and ours(found)["known"] is None
        case "hole":
            assert all("megart" not in one for one in found) and found[-1]["usage"]["completion_tokens"] <= side.TOKENS
        case "text":
            assert said(found)
        case "vectors":
            assert len(found[0]["data"]) == 2 and isinstance(found[0]["data"][0]["embedding"], str)
        case "template":
            assert "<|im_start|>" in found[0]["chat_template"] and found[0]["eos_token"] == "<|im_end|>"
        case "tokens":
            assert found[0]["tokens"] and found[0]["count"] == len(found[0]["tokens"])
        case "scores":
            choice = found[0]["choices"][0]
            count = len(sent["body"]["prompt"][0]) + 1
            assert len(choice["logprobs"]["token_logprobs"]) == len(choice["logprobs"]["top_logprobs"]) == count
        case _:
            raise AssertionError(expect)


@pytest.mark.parametrize(
    "question",
    [
        "What is the title of the book that Ines lent me?",
        "Which tags did I give the boathouse?",
        "Generate the list of all boats",
        "Summarize in a sentence what the kiln reaches",
        "The following is a title: what does it mean?",
        "What is my task today?",
    ],
)
def test_a_persons_question_is_no_side_request(question: str) -> None:
    assert not side.is_side(question) and not side.has_documents(question) and not side.has_hole(question)
