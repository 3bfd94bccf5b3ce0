"""Three owners: a runtime that banks share, banks that know nothing of each other, conversations that remember."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import NOTHING, wait_idle

from megart.bank import Bank, Memory
from megart.errors import BaseMismatchError, InputError, MegartError
from megart.runtime.assistant import Assistant
from megart.runtime.context import Context
from megart.runtime.engine import Engine
from megart.runtime.prefix_cache import LEAST, PrefixCache
from megart.runtime.recite import of_text
from megart.runtime.request import Request
from megart.runtime.runtime import Runtime
from megart.runtime.sampling import SamplingOptions
from megart.runtime.scope import Scope
from megart.runtime.worker import BusyError

LONG = "Count with me: " + " ".join(map(str, range(60))) + "."
OTHER = "Name them all: " + " ".join(f"{c}{c}" for c in "abcdefghijklmnopqrstuvwxyz") + "."


@pytest.fixture
def runtime(tiny):
    with Runtime(tiny("llama"), context_size=1024, threads=1) as made:
        yield made


def bank_of(path: Path, model, *texts: str) -> Bank:
    bank = Bank.create(path, model)
    with Assistant(bank, threads=1) as assistant:
        for number, text in enumerate(texts):
            bank.add(Memory(text, f"m{number}"), **assistant.index_entry(text))
    return bank


def test_two_banks_share_a_model_and_answer_as_alone(tiny, tmp_path: Path) -> None:
    model = tiny("llama")
    banks = [
        bank_of(tmp_path / "one", model, "Ada keeps cats in the mill."),
        bank_of(tmp_path / "two", model, "Boro keeps bees in the garden."),
    ]
    questions = ["Who keeps cats?", "Who keeps bees?"]
    alone = []
    for bank in banks:
        with Assistant(bank, threads=1) as assistant:
            alone.append([assistant.ask(q, max_tokens=8).text for q in questions])
    with Runtime(model, threads=1) as shared:
        first, second = (Assistant(bank, runtime=shared) for bank in banks)
        for _ in range(2):
            for number, q in enumerate(questions):
                assert first.ask(q, max_tokens=8).text == alone[0][number]
                assert second.ask(q, max_tokens=8).text == alone[1][number]
        first.close()
        assert second.ask(questions[1], max_tokens=8).text == alone[1][1]
        with pytest.raises(MegartError, match="closed"):
            first.ask(questions[0])
        second.close()
    for bank in banks:
        bank.close()


def test_a_runtime_takes_no_bank_of_another_base_and_no_second_options(runtime: Runtime, tiny, tmp_path: Path) -> None:
    with Bank.create(tmp_path / "other", tiny("llama", seed=1)) as bank:
        with pytest.raises(BaseMismatchError):
            Assistant(bank, runtime=runtime)
        with pytest.raises(InputError, match="options"):
            Assistant(bank, runtime=runtime, threads=1)


def base_tokens(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of each pass of the base from now on."""
    passes: list[int] = []
    decode = assistant.base.decode
    monkeypatch.setattr(assistant.base, "decode", lambda tokens: passes.append(len(tokens)) or decode(tokens))
    return passes


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_clients_who_take_turns_keep_their_prefixes(ready, tiny, monkeypatch, arch: str) -> None:
    assistant = ready(tiny(arch), policy=NOTHING)
    passes = base_tokens(assistant, monkeypatch)

    def turns(questions: list[str]) -> tuple[list[str], list[int]]:
        talks, said, spent = {q: assistant.conversation() for q in questions}, [], []
        for again in ("", " Again."):
            for q, talk in talks.items():
                passes.clear()
                said.append(talk.ask(q + again, max_tokens=4).text)
                spent.append(sum(passes))
                wait_idle(assistant)
        return said, spent

    said, spent = turns([LONG, OTHER])
    prompt = len(assistant.engine.prompt([{"role": "user", "content": LONG}]).tokens)
    # The second turn repeats the first one's words: what they and the answer cost is read only once.
    assert spent[0] >= prompt and all(later < first + prompt / 2 for first, later in zip(spent[:2], spent[2:]))
    assistant.runtime.prefixes.budget = 0
    assistant.runtime.prefixes.clear()
    without, cold = turns([LONG, OTHER])
    assert without == said and sum(cold[2:]) > sum(spent[2:]) + prompt / 2


@pytest.mark.parametrize("options", [{}, {"logprobs": 1, "echo": True}], ids=["continued", "scored"])
def test_a_text_leaves_a_talk_its_prefix(ready, tiny, monkeypatch, options: dict) -> None:
    assistant = ready(tiny(), policy=NOTHING)
    prompt = len(assistant.engine.prompt([{"role": "user", "content": LONG}]).tokens)
    text = "Quite another text about ferries. " * 8

    def turn() -> tuple[str, list]:
        said = assistant.bare(LONG, max_tokens=4).text
        wait_idle(assistant)
        made = assistant.complete(text, max_tokens=3, **options).wait()
        return said, [made.tokens, made.scored]

    first = turn()
    passes = base_tokens(assistant, monkeypatch)
    said = assistant.bare(LONG, max_tokens=4).text
    assert said == first[0] and sum(passes) < prompt / 2
    assert turn() == first


def test_a_prefix_that_comes_back_gives_the_logits_of_a_cold_prompt(runtime: Runtime) -> None:
    tokens = [runtime.engine.prompt([{"role": "user", "content": text}]).tokens for text in (LONG, OTHER)]

    def logits(advance, which: int):
        advance(tokens[which][:-8])  # leaves some of the prompt to be decoded after it is back
        advance(tokens[which])
        return runtime.base.logits()

    def run():
        cold = []
        for which in (0, 1):
            runtime.base.truncate(0)
            cold.append(logits(runtime.base.advance, which))
        runtime.base.truncate(0)
        prefixes = PrefixCache(runtime.base)
        for which in (0, 1, 0, 1):
            assert (logits(prefixes.advance, which) == cold[which]).all()
            assert len(runtime.base._states) == len(runtime.base.tokens)

    runtime.call(run)


def test_prefixes_are_kept_within_the_budget_and_the_oldest_go(runtime: Runtime) -> None:
    prompts = [tuple(range(5 + n, 5 + n + 2 * LEAST)) for n in (0, 1, 2)]

    def run():
        prefixes = PrefixCache(runtime.base)
        for tokens in prompts:
            prefixes.advance(tokens)
        assert [saved.tokens for saved in prefixes._saved] == prompts[:2]
        prefixes.budget = len(prompts[1])
        prefixes.advance(tuple(range(50, 50 + LEAST)))
        assert [saved.tokens for saved in prefixes._saved] == prompts[2:]
        prefixes.budget = 10
        prefixes.advance(prompts[0])
        assert prefixes._saved == []

    runtime.call(run)


def test_recitals_do_not_drive_out_what_clients_said(runtime: Runtime) -> None:
    talk, recital = runtime.engine.prompt([{"role": "user", "content": LONG}]).tokens, of_text(runtime.engine, OTHER)

    def run():
        runtime.prefixes.advance(talk)
        for _ in range(2):
            runtime.hold(recital, runtime.mix)
            runtime.prefixes.advance(tuple(range(5, 5 + 2 * LEAST)), keep=False)
        assert [saved.tokens for saved in runtime.prefixes._saved] == [talk]

    runtime.call(run)


def test_what_a_bank_holds_of_a_model_is_freed_before_it(tiny, tmp_path: Path, monkeypatch) -> None:
    freed = []
    for owner in (Engine, Context):
        close = owner.close
        monkeypatch.setattr(owner, "close", lambda self, close=close: freed.append(type(self)) or close(self))
    for shared in (False, True):
        with Bank.create(tmp_path / f"bank{shared}", tiny("llama")) as bank:
            runtime = Runtime(tiny("llama"), threads=1) if shared else None
            assistant = Assistant(bank, runtime=runtime) if runtime else Assistant(bank, threads=1)
            assistant.rekey("paper")
            assistant.key("Ada keeps cats.")  # a context of the embedder's own
            freed.clear()
            (runtime or assistant).close()
            assert freed.count(Context) == 4 and freed[-1] is Engine
            assistant.close()
            assert freed.count(Engine) == 1


def test_a_full_queue_refuses(tiny) -> None:
    with Runtime(tiny("llama"), threads=1, most_waiting=2) as runtime:
        go = threading.Event()
        streams = [runtime.submit(lambda _: go.wait(10)) for _ in range(2)]
        assert runtime.waiting == 2
        with pytest.raises(BusyError, match="2 questions wait"):
            runtime.submit(lambda _: None)
        threading.Timer(0.2, go.set).start()
        assert runtime.call(lambda: 5) == 5  # who waits for it is not refused
        assert [stream.answer for stream in streams] == [True, True]
        assert runtime.call(lambda: 7) == 7 and runtime.waiting == 0


def test_a_conversation_is_about_what_its_answers_came_from(ready, monkeypatch) -> None:
    assistant = ready(policy=NOTHING)
    seen = []
    submit = assistant._submit
    monkeypatch.setattr(
        assistant, "_submit", lambda *a, **k: seen.append((list(a[2]), a[3].get("subject"))) or submit(*a, **k)
    )
    talk = assistant.conversation([{"role": "system", "content": "Be short."}])
    answer = talk.ask("Who keeps cats?", max_tokens=4, scope=Scope(gates={"orrin": 1.0}))
    assert answer.sources and talk.history[1:] == [
        {"role": "user", "content": "Who keeps cats?"},
        {"role": "assistant", "content": answer.text},
    ]
    talk.ask("And where?", max_tokens=4)
    assert seen[0] == ([{"role": "system", "content": "Be short."}], None)
    assert seen[1][1] == ("orrin",) and len(seen[1][0]) == 3
    talk.forget()
    assert talk.history == []


def test_the_subject_is_told_by_the_sources_where_the_answer_does_not(ready) -> None:
    assistant = ready()
    said = [{"role": "user", "content": "Zebras?"}, {"role": "assistant", "content": "Striped ones."}]
    asked = Request("ask", "And where?", said, SamplingOptions(max_tokens=4))

    def rows(subject):
        assistant.open_bank.refresh()
        talk = assistant.open_bank._talk(replace(asked, subject=subject))
        return talk and [assistant.open_bank.records[row].id for row in talk.rows]

    assert assistant.on_model(lambda: [rows(("vess",)), rows(("orrin",))]) == [["vess"], ["orrin"]]
    assert assistant.on_model(lambda: rows(None)) != ["vess"]
