"""The server, asked by real clients: the openai package over a socket, and requests as other programs send them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from megart import Bank, Memory, memorize
from megart.errors import InputError
from megart.models import Model

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx2")

from serving import listening  # noqa: E402

from megart.serve import side, wire  # noqa: E402
from megart.serve.answers import MOST_BODY  # noqa: E402
from megart.serve.app import make_app  # noqa: E402
from megart.serve.desk import Desk, to_remember  # noqa: E402
from megart.serve.openai import MOST_INPUTS  # noqa: E402

NOTES = [
    Memory("The spare key of the boathouse hangs behind the blue oar.", id="key", title="Boathouse"),
    Memory("The kiln reaches 1240 degrees; order number of its element is KL-4471.", id="kiln", title="Kiln"),
]


@pytest.fixture(scope="module")
def served(smollm2: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    bank = Bank.create(tmp_path_factory.mktemp("serve") / "notes", smollm2)
    memorize(bank, NOTES, later=True)
    desk = Desk([bank], threads=1)
    with listening(desk) as url, httpx.Client(base_url=url, timeout=120) as http:
        yield SimpleNamespace(bank=bank, desk=desk, url=url, http=http)
    bank.close()


def test_the_openai_client_asks_a_bank(served: SimpleNamespace) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")
    assert [model.id for model in client.models.list()] == ["smollm2:notes", "smollm2"]
    made = client.chat.completions.create(
        model="smollm2:notes", messages=[{"role": "user", "content": "Where is the key of the boathouse?"}]
    )
    assert "blue oar" in made.choices[0].message.content and made.choices[0].finish_reason == "stop"
    assert made.usage.completion_tokens > 0
    source = made.model_extra["megart"]["sources"][0]
    assert source["id"] == "key" and source["text"] == NOTES[0].text and made.model_extra["megart"]["known"] is True


def test_a_streamed_answer_is_the_same_and_ends_as_clients_expect(served: SimpleNamespace) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")
    ask = {"model": "smollm2:notes", "messages": [{"role": "user", "content": "What is the kiln's order number?"}]}
    whole = client.chat.completions.create(**ask)
    chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == whole.choices[0].message.content and "KL-4471" in said
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    raw = served.http.post("/v1/chat/completions", json={**ask, "stream": True}).text
    assert raw.rstrip().endswith("data: [DONE]")


def test_the_base_alone_opens_nothing(served: SimpleNamespace) -> None:
    body = {
        "model": "smollm2",
        "messages": [{"role": "user", "content": "Where is the key of the boathouse?"}],
        "max_tokens": 8,
    }
    made = served.http.post("/v1/chat/completions", json=body).json()
    assert made["megart"]["sources"] == [] and made["megart"]["known"] is None


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Where is the key of the boathouse?"}]}]},
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "system", "content": None},
                {"role": "assistant", "content": None, "tool_calls": []},
                {"role": "user", "content": "Where is the key of the boathouse?"},
            ]
        },
        {"max_completion_tokens": 40, "temperature": 0, "top_p": 1, "frequency_penalty": 0, "seed": -1, "n": 1},
        {"max_tokens": None, "stop": None, "tools": [], "tool_choice": "none", "user": "u", "logit_bias": {}},
        {"max_tokens": -1, "stop": [], "parallel_tool_calls": True, "metadata": {"a": "b"}, "store": False},
    ],
)
def test_what_clients_send_is_taken(served: SimpleNamespace, change: dict) -> None:
    body = {"model": "smollm2:notes", "messages": [{"role": "user", "content": "Where is the key of the boathouse?"}]}
    made = served.http.post("/v1/chat/completions", json={**body, **change})
    assert made.status_code == 200 and "blue oar" in made.json()["choices"][0]["message"]["content"]


def test_what_a_client_asks_for_itself_opens_nothing_and_is_short(served: SimpleNamespace) -> None:
    text = "### Task:\nGenerate a title.\n<chat_history>\nUSER: Where is the key of the boathouse?\n</chat_history>"
    for headers, content in (({"X-OpenWebUI-Task": "title_generation"}, NOTES[0].text), ({}, text)):
        body = {"model": "smollm2:notes", "messages": [{"role": "user", "content": content}], "max_tokens": 4000}
        made = served.http.post("/v1/chat/completions", json=body, headers=headers).json()
        assert made["megart"]["sources"] == [] and made["usage"]["completion_tokens"] <= side.TOKENS


def test_ollamas_clients_find_and_ask(served: SimpleNamespace) -> None:
    names = [model["name"] for model in served.http.get("/api/tags").json()["models"]]
    assert names == ["smollm2:notes", "smollm2"]
    assert served.http.post("/api/show", json={"model": names[0]}).json()["capabilities"] == ["completion"]
    body = {"model": names[0], "messages": [{"role": "user", "content": "Where is the key of the boathouse?"}]}
    lines = [json.loads(line) for line in served.http.post("/api/chat", json=body).text.splitlines()]
    assert "blue oar" in "".join(line["message"]["content"] for line in lines)
    assert [line["done"] for line in lines][-1] is True and not any(line["done"] for line in lines[:-1])
    one = served.http.post("/api/generate", json={"model": names[0], "prompt": "Kiln order number?", "stream": False})
    assert "KL-4471" in one.json()["response"]


def test_ollamas_clients_load_a_model_and_bind_its_form(served: SimpleNamespace) -> None:
    for path, body in (("/api/generate", {"prompt": ""}), ("/api/generate", {}), ("/api/chat", {"messages": []})):
        loaded = served.http.post(path, json={"model": "smollm2", **body}).json()
        assert loaded["done"] is True and loaded["done_reason"] == "load"
    assert served.http.post("/api/generate", json={"model": "llama3"}).status_code == 404
    form = {"type": "object", "properties": {"bird": {"type": "string", "maxLength": 9}}, "required": ["bird"]}
    ask = {"model": "smollm2", "stream": False, "options": {"num_predict": 40}, "messages": [{"role": "user", "content": "A bird?"}]}
    assert list(json.loads(served.http.post("/api/chat", json={**ask, "format": form}).json()["message"]["content"])) == ["bird"]
    assert served.http.post("/api/chat", json={**ask, "format": "json"}).json()["message"]["content"].startswith("{")


def test_what_fails_in_ollamas_stream_is_told_in_it(served: SimpleNamespace) -> None:
    ask = {"model": "smollm2", "messages": [{"role": "user", "content": "A bird?"}]}
    told = served.http.post("/api/chat", json={**ask, "messages": [{"role": "user", "content": "bird " * 5000}]})
    assert "expected at most" in json.loads(told.text.splitlines()[-1])["error"]


def test_a_memory_over_http_is_saved_asked_listed_and_forgotten(served: SimpleNamespace) -> None:
    saved = served.http.post("/v1/memories", json={"text": "Ines takes her coffee with oat milk.", "tags": ["people"]})
    assert saved.status_code == 201 and saved.json()["state"] == "pending"
    found = served.http.get("/v1/memories", params={"q": "OAT milk"}).json()
    assert [row["id"] for row in found["data"]] == [saved.json()["id"]] and found["data"][0]["tags"] == ["people"]
    body = {"messages": [{"role": "user", "content": "How does Ines take her coffee?"}]}
    assert "oat milk" in served.http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    opened = served.http.post("/v1/gate", json={"question": "How does Ines take her coffee?"}).json()
    assert opened["candidates"][0]["id"] == saved.json()["id"]
    assert served.http.delete(f"/v1/memories/{saved.json()['id']}").json()["deleted"] is True
    assert served.http.get("/v1/memories", params={"q": "oat milk"}).json()["total"] == 0


def test_remember_that_saves_and_says_so(served: SimpleNamespace) -> None:
    body = {"messages": [{"role": "user", "content": "Please remember that the ferry to Skerrow leaves at 7:40."}]}
    said = served.http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    assert said.startswith("Saved: ") and len(served.bank) == 3
    record = served.bank.records()[-1]
    assert record.text == "The ferry to Skerrow leaves at 7:40."
    served.bank.remove(record.id)


@pytest.mark.parametrize(
    "said, kept",
    [
        ("remember my locker key is under the mat", "My locker key is under the mat"),
        ("Please remember: the ferry leaves at 7:40.", "The ferry leaves at 7:40."),
        ("Remember Lena's number is 0171 5550192.", "Lena's number is 0171 5550192."),
    ],
)
def test_what_is_to_be_remembered_is_what_follows(said: str, kept: str) -> None:
    assert to_remember(said) == kept


@pytest.mark.parametrize("said", ["Do you remember that day?", "Remember that day in Skerrow? ", "Remember to call."])
def test_what_asks_or_is_no_fact_is_not_saved(said: str) -> None:
    assert to_remember(said) is None


def test_a_request_opens_a_memory_by_hand(served: SimpleNamespace) -> None:
    body = {"messages": [{"role": "user", "content": "Where is the key of the boathouse?"}], "megart": {"gates": {"kiln": 1}}}
    made = served.http.post("/v1/chat/completions", json=body).json()["megart"]
    assert [source["id"] for source in made["sources"]] == ["kiln"]


def test_wrong_requests_are_errors_in_openais_shape(served: SimpleNamespace) -> None:
    ask = {"messages": [{"role": "user", "content": "Hello"}]}
    wrong = [
        ("/v1/chat/completions", {"messages": []}, 400),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}, 400),
        ("/v1/chat/completions", {**ask, "model": "gpt-4"}, 404),
        ("/v1/chat/completions", {**ask, "temperature": "hot"}, 400),
        ("/v1/chat/completions", {**ask, "megart": {"style": "loud"}}, 400),
        ("/v1/chat/completions", {**ask, "n": 100}, 400),
        ("/v1/memories", {"text": ""}, 400),
        ("/v1/embeddings", {"input": []}, 400),
        ("/v1/embeddings", {"input": ["word"] * (MOST_INPUTS + 1)}, 400),
        ("/v1/gate", {"question": None}, 400),
        ("/v1/chat/completions", {**ask, "megart": {"gates": ["key"]}}, 400),
        ("/v1/chat/completions", {**ask, "megart": {"gates": {"key": 2}}}, 400),
        ("/v1/chat/completions", {**ask, "megart": {"gates": {"nobody": 1}}}, 404),
    ]
    for path, body, status in wrong:
        answer = served.http.post(path, json=body)
        assert answer.status_code == status, (path, body, answer.text)
        assert answer.json()["error"]["message"] and answer.json()["error"]["type"] == "invalid_request_error"
    assert served.http.post("/v1/chat/completions", content=b"{").status_code == 400
    assert served.http.post("/v1/chat/completions", content=b" " * (MOST_BODY + 1)).status_code == 413
    assert served.http.delete("/v1/memories/nobody").status_code == 404


def test_foreign_pages_and_names_may_not_call(served: SimpleNamespace) -> None:
    assert served.http.get("/v1/models", headers={"Host": "evil.example"}).status_code == 421
    assert (
        served.http.post("/v1/memories", json={"text": "x"}, headers={"Origin": "http://evil.example"}).status_code
        == 403
    )
    assert "access-control-allow-origin" not in served.http.options("/v1/models").headers
    assert served.http.head("/").status_code == 200
    policy = served.http.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_a_key_is_asked_for(served: SimpleNamespace) -> None:
    app = make_app(served.desk, key="secret", origins=["tauri://localhost"])

    async def call() -> list[int]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            wrong = [{}, {"Authorization": "Bearer other"}, {"Authorization": "Bearer secret"}]
            codes = [(await http.get("/v1/models", headers=headers)).status_code for headers in wrong]
            page = await http.get("/")
            allowed = await http.get(
                "/v1/models", headers={"Authorization": "Bearer secret", "Origin": "tauri://localhost"}
            )
            assert allowed.headers["access-control-allow-origin"] == "tauri://localhost"
            return [*codes, page.status_code]

    assert asyncio.run(call()) == [401, 401, 200, 200]


def test_a_page_that_may_call_may_send_the_headers_it_asks_for(served: SimpleNamespace) -> None:
    app = make_app(served.desk, key="secret", origins=["tauri://localhost"])

    async def call() -> dict[str, str]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            headers = {"Origin": "tauri://localhost", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
            return (await http.options("/v1/chat/completions", headers=headers)).headers

    assert asyncio.run(call())["access-control-allow-headers"] == "authorization,x-stainless-os"


@pytest.mark.parametrize(
    "path, body",
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}),
        ("/v1/embeddings", {"input": "Hello"}),
        ("/v1/gate", {"question": "Hello"}),
    ],
)
def test_a_full_queue_says_when_to_come_again(served: SimpleNamespace, path: str, body: dict) -> None:
    (runtime,) = served.desk._runtimes.values()
    runtime._worker._most, kept = 0, runtime._worker._most
    try:
        answer = served.http.post(path, json=body)
    finally:
        runtime._worker._most = kept
    assert answer.status_code == 503 and answer.headers["retry-after"]
    assert served.desk.waiting == 0


def test_a_client_that_goes_away_leaves_nothing_waiting(served: SimpleNamespace) -> None:
    body = {
        "model": "smollm2",
        "stream": True,
        "max_tokens": 400,
        "messages": [{"role": "user", "content": "Tell a long story."}],
    }
    with served.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_lines())
    for _ in range(100):
        if served.desk.waiting == 0:
            break
        time.sleep(0.1)
    assert served.desk.waiting == 0


def test_clients_in_parallel_get_what_one_gets_alone(served: SimpleNamespace) -> None:
    questions = ["Where is the key of the boathouse?", "What is the kiln's order number?"] * 4
    alone = {q: post(served, q) for q in set(questions)}
    answers: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda i=i, q=q: answers.__setitem__(i, post(served, q)))
        for i, q in enumerate(questions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[i] for i in range(len(questions))] == [alone[q] for q in questions]


def post(served: SimpleNamespace, question: str) -> str:
    body = {"messages": [{"role": "user", "content": question}]}
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=120).json()
    return answer["choices"][0]["message"]["content"]


def test_messages_are_merged() -> None:
    assert wire.merged(
        [{"role": "system", "content": "a"}, {"role": "user", "content": "q"}, {"role": "developer", "content": "b"}]
    ) == [
        {"role": "system", "content": "a\n\nb"},
        {"role": "user", "content": "q"},
    ]
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert wire.merged(turns) == turns
    for wrong in ([], turns[1:], [*turns, *turns[1:]]):
        with pytest.raises(InputError, match="got no messages|must be a user's"):
            wire.merged(wrong)


def test_a_begun_answer_is_gone_on_with_by_the_model_alone(served: SimpleNamespace) -> None:
    question = {"role": "user", "content": "Where is the key of the boathouse?"}
    ask = {"model": "smollm2", "messages": [question], "max_tokens": 24, "temperature": 0}
    whole = served.http.post("/v1/chat/completions", json=ask).json()["choices"][0]["message"]["content"]
    begun = whole[: whole.index(" ", len(whole) // 2)]
    for model in ("smollm2", "smollm2:notes"):
        body = {**ask, "model": model, "messages": [question, {"role": "assistant", "content": begun}]}
        made = served.http.post("/v1/chat/completions", json=body).json()
        said = made["choices"][0]["message"]["content"]
        assert said.split()[0] == whole[len(begun) :].split()[0] and said[0] == " " and not made["megart"]["sources"]
    body["messages"] = [question, {"role": "assistant", "content": "moon " * 4000}]
    assert served.http.post("/v1/chat/completions", json=body).json()["error"]["code"] == "context_length_exceeded"
    body["messages"] = [question, {"role": "assistant", "content": "Remember that the moon is green."}]
    served.http.post("/v1/chat/completions", json=body)
    assert len(served.bank) == len(NOTES)


def test_beyond_this_machine_a_key_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from megart.cli import main

    assert main(["serve", "--host", "0.0.0.0", "--bank", str(tmp_path)]) == 1
    assert "MEGART_API_KEY" in capsys.readouterr().err
