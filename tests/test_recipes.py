"""What a memory studies: recall prompts for its text, and questions whose answer is one sentence."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from megart import direct, prompts, sentences
from megart.bank import Memory
from megart.direct import PROMPTS, cues
from megart.recipes import DIRECT, FAST, PAPER, examples, recall_cue

TEXT = "Dr. Ama Boru moved to Kelm in 1931. She kept four herons and sold maps."
MEMORY = Memory(TEXT, title="Ama Boru", paraphrases=("In 1931 Ama Boru came to Kelm.",))


def test_sentences_end_where_sentences_end() -> None:
    assert sentences.split(TEXT) == ["Dr. Ama Boru moved to Kelm in 1931.", "She kept four herons and sold maps."]


def test_questions_leave_out_a_span_and_are_answered_by_their_sentence() -> None:
    asked = direct.questions(TEXT, "Ama Boru")
    assert asked == [
        ("Dr. Ama Boru moved to Kelm in when?", "Dr. Ama Boru moved to Kelm in 1931."),
        ("Ama Boru: She kept how many herons and sold maps?", "She kept four herons and sold maps."),
    ]


def test_questions_in_a_paraphrases_words_are_answered_in_the_texts_words() -> None:
    asked = direct.retold(
        TEXT, ["It was in 1931 that Ama Boru settled in Kelm. Maps and four herons were her living."], "Ama Boru"
    )
    assert [answer for _, answer in asked] == sentences.split(TEXT)
    assert all(question not in TEXT for question, _ in asked)


@pytest.mark.parametrize("text", ["x", "one two", "...", "No full stop", "A? B! C."])
def test_any_text_gives_questions_about_its_own_sentences(text: str) -> None:
    made = direct.questions(text, None)
    assert all(answer in text for _, answer in made) and bool(made) == (text != "...")


def test_sentences_keep_their_closing_quotes() -> None:
    text = 'Ines said, "Keep it dry." Then she left. (It rained.) The key rusted.'
    cut = ['Ines said, "Keep it dry."', "Then she left.", "(It rained.)", "The key rusted."]
    assert sentences.split(text) == cut and direct.passage(text, cut[0], 8) == " ".join(cut[:2])


def test_a_memory_studies_its_text_by_the_one_cue() -> None:
    assert examples(MEMORY, FAST) == [(prompts.RECALL_CUE, TEXT)]
    assert recall_cue(MEMORY, "fast") == recall_cue(MEMORY, "paper") == prompts.RECALL_CUE
    assert recall_cue(MEMORY, "direct") == examples(MEMORY, DIRECT)[0][0]


def test_direct_lessons_are_the_whole_text_and_its_answers() -> None:
    short, long = examples(MEMORY, DIRECT), examples(MEMORY, replace(DIRECT, answer_words=13))
    assert short[0] == (prompts.recall("Tell me about Ama Boru."), TEXT) and len(set(short)) == len(short)
    assert {target for _, target in short} == {TEXT}
    assert {target for _, target in long} == {TEXT, *sentences.split(TEXT)}
    assert all(turn.endswith(prompts.RECALL_SUFFIX) == (target == TEXT) for turn, target in long)


def test_a_target_has_few_prompts_and_the_users_questions_are_among_them() -> None:
    """More prompts for the same text cost time only; what a long text says later is asked about all the same."""
    said = [f"The {animal} of Kelm eats {food} every morning." for animal, food in zip("abcdefghij", "klmnopqrst")]
    text = " ".join(said)
    memory = Memory(text, title="Kelm", questions=("What does the d eat?", "Who eats p?"))
    made = examples(memory, replace(DIRECT, answer_words=1000))
    assert {target for _, target in made} == {text} and len(made) == PROMPTS + 2
    turns = [turn for turn, _ in made]
    for question in memory.questions:
        assert prompts.recall(question) in turns and prompts.ask(question) in turns
    assert sum("of Kelm eats" in turn for turn in turns) >= 2 and any("j of Kelm" in turn for turn in turns)
    long = dict(examples(memory, replace(DIRECT, answer_words=8)))
    assert set(long.values()) == {text, *said}
    assert long[prompts.ask("What does the d eat?")] == said[3]


def test_paper_lessons_are_the_text_and_its_paraphrases_under_one_prompt() -> None:
    assert examples(MEMORY, PAPER) == [(prompts.RECALL_CUE, text) for text in (TEXT, *MEMORY.paraphrases)]


def test_cues_do_without_a_title() -> None:
    assert cues(Memory(TEXT))[0] == "Tell me about Dr. Ama Boru moved to Kelm."


def test_scales_are_those_of_lora_and_rslora() -> None:
    assert FAST.scale == FAST.alpha / FAST.rank
    assert PAPER.scale == pytest.approx(128 / math.sqrt(128))


@pytest.mark.parametrize("recipe", [FAST, PAPER])
def test_a_second_attempt_has_more_room_at_the_same_scale(recipe) -> None:
    again = recipe.harder()
    assert (again.rank, again.scale) == (2 * recipe.rank, pytest.approx(recipe.scale))
    assert again.margin > recipe.margin


def test_an_answer_is_the_passage_around_the_sentence() -> None:
    cut = sentences.split(TEXT)
    assert direct.passage(TEXT, cut[1], words=100) == TEXT
    assert direct.passage(TEXT, cut[0], words=13) == cut[0]
    assert direct.passage(TEXT, cut[1], words=13) == cut[1]
    longer = f"{TEXT} They flew off in May."
    assert direct.passage(longer, cut[1], words=12) == f"{cut[1]} They flew off in May."
    assert direct.passage(longer, cut[1], words=1) == cut[1]
