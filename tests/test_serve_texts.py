"""Texts that go on, scores of tokens, the tokenizer, streams that wait, metrics, packs: over a real socket."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from megart import Bank, Memory, memorize
from megart.bank.pack import PackedBank, write_pack
from megart.models import Model
from megart.runtime import score

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx2")
openai = pytest.importorskip("openai")

from serving import listening  # noqa: E402

from megart.serve import answers, responses  # noqa: E402
from megart.serve.desk import Desk  # noqa: E402

KEY = Memory("The spare key of the boathouse hangs behind the blue oar.", id="key", title="Boathouse")


@pytest.fixture(scope="module")
def served(smollm2: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    folder = tmp_path_factory.mktemp("texts")
    with Bank.create(folder / "notes", smollm2) as bank:
        memorize(bank, [KEY], later=True)
        write_pack(bank, folder / "old.megapack")
        with PackedBank(folder / "old.megapack") as pack:
            desk = Desk([bank, pack], threads=1)
            with listening(desk, metrics=True) as url, httpx.Client(base_url=url, timeout=120) as http:
                yield SimpleNamespace(http=http, desk=desk, url=url, assistant=desk.find("")[1])


def complete(served: SimpleNamespace, **body: object) -> dict:
    answer = served.http.post("/v1/completions", json={"model": "smollm2", "temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_text_goes_on_and_its_tokens_are_scored(served: SimpleNamespace) -> None:
    made = complete(served, prompt="The capital of France is", max_tokens=2, echo=True, logprobs=2)["choices"][0]
    assert made["text"].startswith("The capital of France is Paris") and made["finish_reason"] == "length"
    scores = made["logprobs"]
    assert "".join(scores["tokens"]) == made["text"] and scores["token_logprobs"][0] is None
    assert [made["text"][at:][: len(t)] for at, t in zip(scores["text_offset"], scores["tokens"])] == scores["tokens"]
    engine = served.assistant.engine
    head = engine.tokenize("The capital of France is", bos=True)
    prompt = score.tokens_prompt(head[:-2])
    alone = score.score(served.assistant, prompt, [head[-2:]], memories=None).scores[0]
    assert sum(scores["token_logprobs"][len(head) - 2 : len(head)]) == pytest.approx(alone.logprob, abs=0.05)
    at = len(head)  # the first new token, which was the likeliest
    assert scores["token_logprobs"][at] == max(scores["top_logprobs"][at].values())
    assert all(list(best.values()) and len(best) <= 2 for best in scores["top_logprobs"][1:])


def test_token_ids_several_prompts_and_no_new_token(served: SimpleNamespace) -> None:
    ids = served.http.post("/tokenize", json={"prompt": "The sun is"}).json()["tokens"]
    one = complete(served, prompt="The sun is", max_tokens=3)["choices"][0]["text"]
    many = complete(served, prompt=[ids, ids], max_tokens=3, n=2)["choices"]
    assert [choice["text"] for choice in many] == [one] * 4 and [c["index"] for c in many] == [0, 1, 2, 3]
    none = complete(served, prompt=ids, max_tokens=0, echo=True, logprobs=0)["choices"][0]
    assert none["text"] == "" and len(none["logprobs"]["tokens"]) == len(ids)
    assert served.http.post("/detokenize", json={"tokens": ids}).json()["prompt"] == "The sun is"


def test_the_token_that_ends_a_text_is_scored_too(served: SimpleNamespace) -> None:
    prompt = "<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\nHi.<|im_end|>\n"
    engine = served.assistant.engine
    ids = engine.tokenize(prompt)[: -len(engine.tokenize("<|im_end|>\n"))]
    made = complete(served, prompt=ids, max_tokens=30, logprobs=1)
    choice = made["choices"][0]
    if choice["finish_reason"] == "stop":
        assert len(choice["logprobs"]["tokens"]) == made["usage"]["completion_tokens"] + 1
    stopped = complete(served, prompt="One two three four", max_tokens=30, logprobs=1, stop=["five"])["choices"][0]
    assert "five" not in stopped["text"] and len("".join(stopped["logprobs"]["tokens"])) <= len(stopped["text"])


def test_a_question_to_a_bank_is_answered_from_it_whole_and_streamed(served: SimpleNamespace) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")
    ask = {"model": "smollm2:notes", "prompt": "Where is the key of the boathouse?"}
    whole = client.completions.create(**ask)
    assert "blue oar" in whole.choices[0].text and whole.model_extra["megart"]["known"] is True
    parts = [part.choices[0].text for part in client.completions.create(**ask, stream=True)]
    assert "".join(parts) == whole.choices[0].text
    raw = "".join(
        part.choices[0].text
        for part in client.completions.create(model="smollm2", prompt="The sun is", max_tokens=5, stream=True, echo=True)
    )
    assert raw.startswith("The sun is") and len(raw) > len("The sun is")


def test_several_texts_stream_one_after_the_other(served: SimpleNamespace) -> None:
    body = {"model": "smollm2", "prompt": ["The sun is", "One two"], "n": 2, "max_tokens": 3, "temperature": 0}
    whole = [choice["text"] for choice in complete(served, **body)["choices"]]
    text = served.http.post(
        "/v1/completions", json={**body, "stream": True, "stream_options": {"include_usage": True}}
    ).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    said = ["".join(c["text"] for e in events for c in e["choices"] if c["index"] == at) for at in range(4)]
    assert said == whole and events[-1]["choices"] == [] and events[-1]["usage"]["completion_tokens"] == 12
    ask = {"model": "smollm2:notes", "prompt": "Where is the key of the boathouse?", "n": 2, "stream": True}
    lines = served.http.post("/v1/completions", json=ask).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    ends = [event for event in events if event["choices"][0]["finish_reason"]]
    assert [event["choices"][0]["index"] for event in ends] == [0, 1]
    assert all(event["megart"]["sources"][0]["id"] == "key" for event in ends)


@pytest.mark.parametrize(
    "path, body",
    [
        ("/v1/completions", {"prompt": ""}),
        ("/v1/completions", {"prompt": []}),
        ("/v1/completions", {"prompt": [[]]}),
        ("/v1/completions", {"prompt": ["a", 3]}),
        ("/v1/completions", {"prompt": [1 << 30]}),
        ("/v1/completions", {"prompt": "a", "logprobs": 1000}),
        ("/v1/completions", {"prompt": "a", "logprobs": "many"}),
        ("/v1/completions", {"prompt": "a " * 5000}),
        ("/v1/responses", {"input": 5}),
        ("/v1/responses", {"input": "a", "previous_response_id": "resp-1"}),
        ("/tokenize", {"prompt": 5}),
        ("/detokenize", {"tokens": ["a"]}),
        ("/detokenize", {"tokens": "a"}),
    ],
)
def test_wrong_texts_are_told(served: SimpleNamespace, path: str, body: dict) -> None:
    answer = served.http.post(path, json={"model": "smollm2", **body})
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error", answer.text


def test_the_responses_api_whole_and_streamed(served: SimpleNamespace) -> None:
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none")
    ask = {"model": "smollm2:notes", "instructions": "Be brief.", "input": "Where is the key of the boathouse?"}
    whole = client.responses.create(**ask)
    assert "blue oar" in whole.output_text and whole.status == "completed" and whole.usage.output_tokens > 0
    assert whole.model_extra["megart"]["sources"][0]["id"] == "key"
    with client.responses.stream(**ask) as stream:
        events = list(stream)
        assert stream.get_final_response().output_text == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    cut = client.responses.create(model="smollm2", input="Tell a long story.", max_output_tokens=4)
    assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens"


def test_what_is_no_message_in_a_responses_input_is_passed_over() -> None:
    given = [
        {"role": "user", "content": [{"type": "input_text", "text": "One"}]},
        {"type": "function_call", "name": "look", "arguments": "{}"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Two"}]},
        {"role": "user", "content": "Three"},
    ]
    ask = responses.ask_of({"instructions": "Be brief.", "input": given, "max_output_tokens": 9})
    assert [m["content"] for m in ask.messages] == ["Be brief.", "One", "Two", "Three"]
    assert ask.options["max_tokens"] == 9


def test_several_choices_stream_one_after_the_other_with_usage_and_times(served: SimpleNamespace) -> None:
    body = {"model": "smollm2", "n": 2, "stream": True, "max_tokens": 5, "stream_options": {"include_usage": True},
            "messages": [{"role": "user", "content": "Say hello."}]}  # fmt: skip
    text = served.http.post("/v1/chat/completions", json=body).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    ends = [e for e in events if e["choices"] and e["choices"][0]["finish_reason"]]
    assert [e["choices"][0]["index"] for e in ends] == [0, 1]
    assert all(e["usage"]["completion_tokens"] and e["timings"]["predicted_n"] for e in ends)
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == sum(e["usage"]["completion_tokens"] for e in ends)


def test_a_stream_that_waits_is_kept_alive_and_ends_when_nobody_listens(
    served: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "PING_SECONDS", 1)
    body = {"model": "smollm2", "stream": True, "messages": [{"role": "user", "content": "Say hello."}]}
    lock, free, held = served.assistant.engine.lock, threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            free.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    try:
        with served.http.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            assert any(line.startswith(": ping") for line in (next(lines) for _ in range(8)))
        for _ in range(100):  # it waits behind the lock, and yet nobody's answer waits any more
            if served.desk.waiting == 0:
                break
            time.sleep(0.05)
        assert served.desk.waiting == 0
    finally:
        free.set()
        holder.join()


@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_ends_when_its_time_is_out(
    served: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    monkeypatch.setattr(answers, "ANSWER_SECONDS", 0.5)
    ask = {"model": "smollm2", "max_tokens": 1500, "stream": streamed, "temperature": 0,
           "messages": [{"role": "user", "content": "Write a very long story about the sea."}]}  # fmt: skip
    text = served.http.post("/v1/chat/completions", json=ask).text
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
    end = json.loads(lines[-1] if streamed else text)
    assert end["choices"][0]["finish_reason"] == "length" and end["usage"]["completion_tokens"] < 500
    free = threading.Event()
    served.assistant.runtime.submit(lambda _: free.wait(30))
    threading.Timer(1, free.set).start()
    late = served.http.post("/v1/chat/completions", json=ask)
    assert '"code":"timeout"' in late.text.replace(" ", "")
    assert late.text.rstrip().endswith("[DONE]") if streamed else late.status_code == 503 and late.headers["retry-after"]


def test_head_options_health_and_metrics(served: SimpleNamespace) -> None:
    for path in ("/", "/health", "/v1/models", "/v1/memories", "/api/tags", "/page.js"):
        head = served.http.head(path)
        assert head.status_code == 200 and head.content == b"", path
    assert "DELETE" in served.http.options("/v1/memories/key").headers["allow"]
    missing = served.http.get("/v1/nothing")
    assert missing.status_code == 404 and "/v1/nothing" in missing.json()["error"]["message"]
    assert served.http.get("/v1/chat/completions").status_code == 405
    served.http.get("/v1/memories/key")
    told = served.http.get("/metrics").text
    assert 'megart_requests_total{route="/v1/memories/{id}",status="200"}' in told
    assert 'megart_memories{model="smollm2:notes"} 1.0' in told and "megart_waiting 0.0" in told
    assert "boathouse" not in told.lower()


def test_a_pack_is_asked_and_refuses_to_be_changed(served: SimpleNamespace) -> None:
    body = {"model": "smollm2:old", "messages": [{"role": "user", "content": "Where is the key of the boathouse?"}]}
    assert "blue oar" in served.http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    about = served.http.get("/v1/models/smollm2:old").json()["megart"]
    assert about == {"memories": 1, "read_only": True}
    pack = {"model": "smollm2:old"}
    for refused in (
        served.http.post("/v1/memories", json={**pack, "text": "Something new."}),
        served.http.delete("/v1/memories/key", params=pack),
        served.http.post("/v1/learn", json=pack),
    ):
        assert "unpack" in refused.json()["error"]["message"], refused.text
        assert refused.status_code == 403
    body["messages"][0]["content"] = "Remember that the oar is red."
    assert served.http.post("/v1/chat/completions", json=body).status_code == 403
