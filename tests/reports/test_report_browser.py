"""The report in a real browser: it plays, sorts, filters, obeys the keyboard, and asks the network for nothing."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import HOSTILE, make_run

from milonga.reports.html import write_report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(make_run(tmp_path_factory.mktemp("browser") / "run", prompts=16))


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    """The report, opened; at the end nothing may have gone wrong on the console or to the network."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened, troubles, requests = context.new_page(), [], []
    opened.on("console", lambda message: troubles.append(message.text))
    opened.on("pageerror", lambda error: troubles.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(report.as_uri())
    yield opened
    context.close()
    assert troubles == []
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]


def shown(page: Any) -> list[str]:
    return page.locator(".card:visible h3").all_inner_texts()


def test_every_clip_decodes_and_every_picture_shows(page: Any) -> None:
    durations = page.evaluate(
        """async () => {
            const durations = [];
            for (const one of document.querySelectorAll(".sound")) {
                durations.push((await decode(one.dataset.url)).duration);
            }
            return durations;
        }"""
    )
    assert len(durations) == 4 * 16
    assert all(abs(seconds - 2.0) < 0.05 for seconds in durations)
    pictures = page.evaluate(
        """() => Promise.all([...document.images].map((image) => {
            image.loading = "eager";
            return image.decode().then(() => image.naturalWidth);
        }))"""
    )
    assert len(pictures) == 64
    assert min(pictures) > 100


def test_hostile_words_are_shown_as_text_and_do_nothing(page: Any) -> None:
    assert HOSTILE in shown(page)
    assert "owned" not in page.title()
    assert page.locator("img[src=x]").count() == 0


def test_sorting_and_filtering(page: Any) -> None:
    everything = shown(page)
    page.select_option("#sort", "improved")
    gains = [float(card.get_attribute("data-gain")) for card in page.locator(".card").all()]
    assert gains == sorted(gains, reverse=True)
    page.select_option("#sort", "worst")
    scores = [float(card.get_attribute("data-score")) for card in page.locator(".card").all()]
    assert scores == sorted(scores)
    page.select_option("#split", "temporal")
    temporal = shown(page)
    assert 0 < len(temporal) < len(everything)
    assert all(" then " in text for text in temporal)
    page.select_option("#label", "Bell")
    assert all("bell" in text for text in shown(page))
    assert page.locator("#shown").inner_text() == f"{len(shown(page))} of {len(everything)} prompts"
    page.select_option("#split", "")
    page.select_option("#label", "")
    page.select_option("#sort", "drawn")
    assert shown(page) == everything


def test_one_player_sounds_at_a_time_and_the_keyboard_moves(page: Any) -> None:
    playing = "() => [...document.querySelectorAll('.play')].map((one) => one.closest('.playing') !== null)"

    def expect(place: int | None) -> None:
        page.wait_for_function(f"(place) => ({playing})().every((plays, at) => plays === (at === place))", arg=place)

    for card in (0, 1):  # they do not end while the test looks at them
        page.locator(".card").nth(card).locator(".loop").first.click()
    page.locator(".card").nth(0).locator(".play").nth(0).click()
    expect(0)
    page.keyboard.press("ArrowRight")
    expect(1)
    page.keyboard.press("ArrowDown")
    expect(5)
    page.keyboard.press("Space")
    expect(None)
    page.keyboard.press("Space")
    expect(5)
    page.keyboard.press("Escape")
    expect(None)


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 844})
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width


def test_controls_have_names(page: Any) -> None:
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, select, input, svg, .scroll")].filter(
            (one) => !(one.getAttribute("aria-label") || (one.labels && one.labels.length)
                || (one.tagName === "BUTTON" && one.textContent.trim()))).length"""
    )
    assert nameless == 0
    assert page.locator("html").get_attribute("lang") == "en"


def test_without_script_the_page_still_plays(browser: Any, report: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    opened = context.new_page()
    opened.goto(report.as_uri())
    assert opened.locator("audio[controls]:visible").count() == 64
    context.close()
