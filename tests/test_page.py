"""The page in a real browser, as a person uses it: ask, look at the source, add, learn, search, forget."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from megart import Bank, Memory, memorize
from megart.bank.pack import PackedBank, write_pack
from megart.models import Model

pytest.importorskip("fastapi")
playwright = pytest.importorskip("playwright.sync_api")

from serving import listening  # noqa: E402

from megart.serve.desk import Desk  # noqa: E402
from megart.serve.lessons import can_teach  # noqa: E402

pytestmark = pytest.mark.slow
NOTES = [
    Memory("The boathouse was built in 1931. Its spare key hangs behind the blue oar.", id="key", title="Boathouse"),
    Memory("The kiln reaches 1240 degrees; order number of its element is KL-4471.", id="kiln", title="Kiln"),
]
# A browser that asks nobody outside for anything.
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
# Where to put pictures of the page, to be looked at; nowhere without it.
PICTURES = os.environ.get("MEGART_PICTURES")


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as play:
        if program is None and not Path(play.chromium.executable_path).exists():
            pytest.skip("needs Chromium (apt-get install chromium, or playwright install chromium)")
        opened = play.chromium.launch(executable_path=program, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def served(smollm2: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    folder = tmp_path_factory.mktemp("page")
    with Bank.create(folder / "notes", smollm2) as bank, Bank.create(folder / "rest", smollm2) as other:
        memorize(bank, NOTES, later=True)
        memorize(other, [Memory("The ferry to Skerrow leaves at 7:40.", id="ferry", title="Ferry")], later=True)
        write_pack(other, folder / "old.megapack")
        with PackedBank(folder / "old.megapack") as packed, listening(Desk([bank, packed], threads=1)) as url:
            yield SimpleNamespace(bank=bank, url=url)


@pytest.fixture
def page(browser, served: SimpleNamespace) -> Iterator[object]:
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    context.set_default_timeout(60_000)
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    opened.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith(served.url) else None)
    opened.goto(served.url)
    playwright.expect(opened.locator("#memories li").first).to_be_visible()
    yield opened
    context.close()
    assert wrong == [], "nothing fails, and nobody outside is asked"


def ask(page, question: str, button: bool = True) -> object:
    """The item of the answer to *question*, when it is whole."""
    page.get_by_label("Your question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click() if button else page.keyboard.press("Enter")
    answer = page.locator("#talk > li").last
    playwright.expect(answer.locator(".about").last).to_contain_text("whole")
    return answer


def picture(page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=f"{PICTURES}/{name}.png", full_page=True)


def test_an_answer_shows_its_words_in_the_note_that_opened(page) -> None:
    answer = ask(page, "Where is the spare key of the boathouse?")
    assert answer.locator("span").first.inner_text() == "Its spare key hangs behind the blue oar."
    note = answer.locator("details")
    assert note.get_attribute("open") is not None and "built in 1931" in note.inner_text()
    assert "blue oar" in note.locator("mark").inner_text()
    assert answer.get_by_role("meter", name="Boathouse opened").evaluate("e => e.value") > 0.5
    assert re.search(r"first word \d+ ms, whole \d+ ms", answer.inner_text())
    picture(page, "desk_answer")


def test_styles_and_only_from_memory(page) -> None:
    page.get_by_label("Answer").select_option("short")
    answer = ask(page, "Where is the spare key of the boathouse?", button=False)
    assert answer.locator("span").first.inner_text() == "behind the blue oar"
    page.get_by_label("only from memory").check()
    answer = ask(page, "What colour is my bicycle?")
    assert answer.locator("span").first.inner_text() == "Not in memory."
    picture(page, "desk_strict")


def test_a_memory_is_added_found_and_forgotten_by_keyboard(page, served: SimpleNamespace) -> None:
    page.get_by_label("Add a memory").focus()
    page.keyboard.type("Ines takes her coffee with <b>oat</b> milk & no sugar.")
    page.keyboard.press("Tab")
    page.keyboard.type("<img src=x onerror=alert(1)>")
    page.keyboard.press("Enter")
    first = page.locator("#memories li").first
    playwright.expect(first).to_contain_text("<b>oat</b> milk & no sugar")
    assert page.locator("#memories b, #memories img").count() == 0, "what people write is text"
    assert page.evaluate("document.activeElement.id") == "text"
    answer = ask(page, "How does Ines take her coffee?")
    assert "oat" in answer.inner_text() and page.locator("#talk b, #talk img").count() == 0
    page.get_by_label("Search the memories").fill("coffee")
    playwright.expect(page.locator("#count")).to_have_text("1 memory")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Forget <img src=x onerror=alert(1)>").press("Enter")
    playwright.expect(page.locator("#count")).to_have_text("0 memories")
    assert len(served.bank) == 2


def test_remember_in_a_talk_is_listed(page, served: SimpleNamespace) -> None:
    page.get_by_label("Your question").fill("Remember that the bins go out on Thursday.")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#memories li").first).to_contain_text("bins go out on Thursday")
    page.get_by_role("button", name="New talk").click()
    assert page.locator("#talk > li").count() == 0
    served.bank.remove(served.bank.records()[-1].id)


@pytest.mark.skipif(not can_teach(), reason="needs torch")
def test_learning_is_watched(page, served: SimpleNamespace) -> None:
    playwright.expect(page.get_by_text("2 not learnt yet")).to_be_visible()
    page.get_by_role("button", name="Learn now").click()
    playwright.expect(page.get_by_role("progressbar", name="Memories learnt")).to_be_visible()
    picture(page, "desk_learning")
    playwright.expect(page.locator("#memories li", has_text=", learnt")).to_have_count(2, timeout=180_000)
    playwright.expect(page.locator("#lessons")).to_be_hidden()
    answer = ask(page, "What is the order number of the kiln's element?")
    assert "KL-4471" in answer.inner_text() and "not learnt" not in answer.inner_text()


def test_a_pack_is_only_asked_and_the_model_alone_has_no_bank(page) -> None:
    choice = page.get_by_label("Ask", exact=True)
    choice.select_option("smollm2:old")
    playwright.expect(page.get_by_text("This bank is a pack")).to_be_visible()
    playwright.expect(page.locator("#memories li")).to_have_count(1)  # the other bank's list is gone
    playwright.expect(page.locator("#memories li")).to_contain_text("Skerrow")
    assert page.locator("#memories button:visible, #add:visible, #lessons:visible").count() == 0
    assert "7:40" in ask(page, "When does the ferry to Skerrow leave?").inner_text()
    picture(page, "desk_pack")
    choice.select_option("smollm2")
    playwright.expect(page.locator("#bank")).to_be_hidden()
    page.get_by_label("Your question").fill("Tell me a long story about the sea.")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Stop").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Ask", exact=True).wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_both_colours_and_everything_has_a_name(page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 375, "height": 700})
    for _ in range(3):
        answer = ask(page, "Where is the spare key of the boathouse?")
    assert page.evaluate("document.documentElement.scrollWidth") <= 375, "nothing is cut off at the side"
    low, field = (part.bounding_box() for part in (answer, page.locator("#ask")))
    assert low["y"] + low["height"] <= field["y"], "the last answer stands above the field that one asks in"
    picture(page, f"phone_{scheme}")
    page.set_viewport_size({"width": 1100, "height": 800})
    picture(page, f"desk_{scheme}")
    unnamed = page.evaluate("""() => [...document.querySelectorAll("button, input, select, textarea, meter, progress")]
        .filter(e => !(e.ariaLabel || e.labels?.length || e.textContent.trim())).map(e => e.outerHTML)""")
    assert unnamed == []
    assert page.evaluate(CONTRAST) >= 4.5


# The least contrast (WCAG 2) between a text and what it stands on.
CONTRAST = """() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const under = (e) => { const c = rgb(getComputedStyle(e).backgroundColor);
    return c[3] === 0 ? (e.parentElement ? under(e.parentElement) : [255, 255, 255]) : c; };
  let least = 21;
  for (const e of document.querySelectorAll("body *")) {
    if (!e.checkVisibility() || ![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(under(e))].sort((x, y) => y - x);
    least = Math.min(least, (a + 0.05) / (b + 0.05));
  }
  return least;
}"""
