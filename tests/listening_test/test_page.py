"""The pages in a real browser: whole sessions by keyboard, a reload and a killed server on the way, hostile prompts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from small_test import HOSTILE, PLAN, SYSTEMS, served, small_test

from milonga.core.audio import flac_bytes
from milonga.core.records import Clip
from milonga.listening_test.ratings import Ratings
from milonga.listening_test.screening import tone_answer

SILENCE = flac_bytes(Clip(np.zeros(800, np.float32), 16000))


def cut_short(route: Any, url: str) -> None:
    """A request to `url`; what it gives of the headphone check lasts 0.05 s, although the server has sent all of it."""
    answer = route.fetch(url=url, max_redirects=0)
    if "/tones/" in url and route.request.method == "GET":
        route.fulfill(status=answer.status, content_type="audio/flac", body=SILENCE)
    else:
        route.fulfill(response=answer)


class Visit:
    """A new rater's page, and all that it said on the console and asked of the network."""

    def __init__(self, browser: Any, base: str, ratings: Ratings, width: int = 1280) -> None:
        self.base, self.token = base, ratings.invite(1)[0]
        self.number = ratings.number_of(self.token) or 0
        self.context = browser.new_context(viewport={"width": width, "height": 850})
        self.page, self.troubles, self.urls = self.context.new_page(), [], []
        self.page.on("console", lambda message: self.troubles.append(message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.context.route("**/tones/*", lambda route: cut_short(route, route.request.url))
        self.page.on("request", lambda request: self.urls.append(request.url))
        self.page.goto(f"{base}/r/{self.token}")

    def tones(self, seed: int) -> None:
        """The welcome and the headphone check, by keyboard; the check's sounds are cut short."""
        self.page.get_by_role("button", name="Begin").press("Enter")
        for item in range(6):
            self.page.wait_for_selector(f".step:has-text('{item + 1} of 6')")
            self.page.keyboard.press(" ")
            self.page.wait_for_selector(".sound.heard")
            self.page.keyboard.press(str(tone_answer(seed, self.number, item)))
        self.page.wait_for_selector("text=Listen to two examples first")

    def trial(self) -> str:
        """Hears and judges the trial that is shown, or leaves the instructions, by keyboard; the heading before."""
        page = self.page
        if page.locator(".prompt").count() == 0:
            page.keyboard.press("Enter")
            page.wait_for_selector(".prompt")
        step = page.locator(".step").inner_text()
        sides = page.locator(".play").count()
        for place, key in enumerate(("a", "b") if sides == 2 else (" ",)):
            page.keyboard.press(key)
            page.wait_for_selector(f".sound.heard:nth-child({place + 1})", timeout=60000)
        for key in ("4", "2") if sides == 1 else ("3",):
            page.keyboard.press(key)
        page.keyboard.press("Enter")
        return step

    def gone_on(self, step: str) -> None:
        """Waits until the page shows something else."""
        self.page.wait_for_function(
            "(step) => document.querySelector('.step')?.textContent !== step", arg=step, timeout=60000
        )


@pytest.mark.slow
def test_a_whole_session_by_keyboard_with_a_reload_and_a_killed_server(browser, tmp_path: Path) -> None:
    from dataclasses import replace

    test = small_test(tmp_path / "test", prompts=5, plan=replace(PLAN, per_rater=2))
    ratings = Ratings(tmp_path / "test" / "ratings.sqlite")
    with served(tmp_path / "test") as (process, link):
        base = link.split("/admin")[0]
        visit = Visit(browser, base, ratings)
        visit.tones(test.seed)
        total = len(ratings.trials(visit.number))
        for _ in range(3):
            visit.gone_on(visit.trial())
        visit.page.reload()
        visit.page.wait_for_selector(f".step:has-text('4 of {total}')")
        visit.page.wait_for_selector(".sound [aria-valuemax='0.30']")
        assert len(ratings.judged(visit.number)) == 3
        process.kill()
        process.wait()
        # The clip is there already or not: answer through the page's own request, which must not be lost.
        visit.page.evaluate(
            """() => { window.saved = request("PUT", "/trials/3", { ovl: 4, rel: 2, seconds: 1 }).then(next); }"""
        )
        visit.page.wait_for_selector("text=Not saved yet")
        assert 3 not in ratings.judged(visit.number)
        again = served(tmp_path / "test", urlsplit(base).port or 0)
        again.__enter__()
        visit.page.wait_for_selector(f".step:has-text('5 of {total}')", timeout=60000)
        assert ratings.judged(visit.number)[3] == {"ovl": 4, "rel": 2, "better": None, "scores": None}
        while visit.page.locator("text=Thank you!").count() == 0:
            visit.gone_on(visit.trial())
        again.__exit__(None, None, None)
    judged, trials = ratings.judged(visit.number), ratings.trials(visit.number)
    assert len(judged) == len(trials) == total
    for place, trial in enumerate(trials):
        expected = {"ovl": 4, "rel": 2, "better": None} if trial.kind == "rate" else {"better": "b"}
        assert expected.items() <= judged[place].items()
    assert ratings.tones() == {f"r{visit.number}": 6}
    text = visit.page.content()
    assert not any(name in text for name in SYSTEMS)
    assert all(url.startswith((base, "data:")) for url in visit.urls)
    lost = "Failed to load resource"  # what Chromium itself says while the server is away
    assert [one for one in visit.troubles if lost not in one] == []
    visit.context.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Ratings, int, str]]:
    """A served test whose every session has the hostile prompt."""
    from dataclasses import replace

    folder = tmp_path_factory.mktemp("page") / "test"
    test = small_test(folder, plan=replace(PLAN, per_rater=6, seed=seed_with_hostile_prompt()))
    with served(folder) as (_, link):
        yield link.split("/admin")[0], Ratings(folder / "ratings.sqlite"), test.seed, link


def seed_with_hostile_prompt() -> int:
    """A seed that makes the first prompt one of those that are judged, not one of the three that are reserved."""
    import numpy as np

    return next(seed for seed in range(99) if 0 not in np.random.default_rng(seed).permutation(9)[:3])


def test_a_hostile_prompt_is_shown_as_text_and_does_nothing(browser, place) -> None:
    base, ratings, seed, _ = place
    visit = Visit(browser, base, ratings)
    visit.tones(seed)
    for _ in range(8):
        if visit.page.locator(".prompt").count() and visit.page.locator(".prompt").inner_text() == HOSTILE:
            break
        visit.gone_on(visit.trial())
    assert visit.page.locator(".prompt").inner_text() == HOSTILE
    assert visit.page.title() == "A small test"
    assert visit.page.locator("img").count() == 0
    assert visit.troubles == []
    visit.context.close()


def test_nothing_can_be_answered_unheard_and_an_answer_can_be_changed(browser, place) -> None:
    base, ratings, seed, _ = place
    visit = Visit(browser, base, ratings)
    visit.tones(seed)
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_selector(".prompt")
    visit.page.keyboard.press("4")
    assert visit.page.locator("input:enabled, input:checked").count() == 0
    assert visit.page.get_by_role("button", name="Next").is_disabled()
    visit.gone_on(visit.trial())
    visit.page.keyboard.press("Backspace")
    visit.page.wait_for_selector("input[name=ovl][value='4']:checked", state="attached")
    visit.page.locator("input[name=ovl][value='5']").check(force=True)
    visit.page.get_by_role("button", name="Next").click()
    visit.page.wait_for_selector(".step:has-text('2 of')")
    assert ratings.judged(visit.number) == {0: {"ovl": 5, "rel": 2, "better": None, "scores": None}}
    visit.context.close()


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen_and_all_controls_have_names(browser, place, width: int) -> None:
    base, ratings, seed, link = place
    visit = Visit(browser, base, ratings, width)
    wide, nameless = (
        "() => document.documentElement.scrollWidth",
        """() => [...document.querySelectorAll(
        "button, input, progress, [role=progressbar], [role=group]")].filter((one) => !(one.textContent.trim()
        || one.getAttribute("aria-label") || (one.labels && one.labels.length))).length""",
    )
    for go in (lambda: None, lambda: visit.tones(seed), lambda: visit.page.keyboard.press("Enter")):
        go()
        assert visit.page.evaluate(wide) <= width
        assert visit.page.evaluate(nameless) == 0
    visit.page.goto(link)
    visit.page.wait_for_selector(".tiles")
    assert visit.page.evaluate(wide) <= width
    assert visit.page.evaluate(nameless) == 0
    visit.context.close()


@pytest.mark.slow
def test_the_admin_page_counts_and_invites(browser, place) -> None:
    base, ratings, _, link = place
    visit = Visit(browser, base, ratings)
    visit.page.goto(link)
    visit.page.wait_for_selector("tbody tr")
    before = visit.page.locator("tbody tr").count()
    visit.page.fill("#number", "2")
    visit.page.get_by_role("button", name="Create links").click()
    visit.page.wait_for_function(f"() => document.querySelectorAll('tbody tr').length === {before + 2}")
    visit.page.locator("button.copy").first.focus()
    ratings.invite(1)  # by the command, say: the page shows it by itself, and leaves the focus where it was
    visit.page.wait_for_function(f"() => document.querySelectorAll('tbody tr').length === {before + 3}", timeout=15000)
    assert visit.page.evaluate("document.activeElement === document.querySelector('button.copy')")
    shown = visit.page.locator("td.link code").last.inner_text()
    assert shown == f"{base}/r/{ratings.raters()[-1].token}"
    assert visit.troubles == []
    visit.context.close()


def test_a_link_that_is_not_valid_says_so(browser, place) -> None:
    page = browser.new_page()
    page.goto(f"{place[0]}/r/{'A' * 22}")
    assert page.locator("h1").inner_text() == "This link is not valid"
    page.close()


@pytest.mark.slow
def test_a_crowd_rater_goes_from_the_entry_link_by_sliders_to_the_code(browser, tmp_path: Path) -> None:
    """On a phone's screen, below a path of another server, in words of one's own."""
    from dataclasses import replace

    test = small_test(tmp_path / "test", prompts=5, plan=replace(PLAN, kinds=("mushra",), per_rater=1), seconds=0.2)
    (tmp_path / "test" / "page.toml").write_text(
        'consent = "I agree."\nask = ["device"]\ncomment = true\ncompletion_code = "C1"\n'
        'completion_url = "https://example.org/{PROLIFIC_PID}"\n[texts]\nnext = "Weiter"\n'
    )
    ratings, troubles = Ratings(tmp_path / "test" / "ratings.sqlite"), []
    with served(tmp_path / "test") as (_, link):
        base = link.split("/admin")[0]
        context = browser.new_context(viewport={"width": 390, "height": 850})
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        inside = lambda route: route.request.url.replace("https://lab.example.org/listen", base)  # noqa: E731
        context.route("https://lab.example.org/listen/**", lambda route: cut_short(route, inside(route)))
        page.goto(f"https://lab.example.org/listen/join/{ratings.entry_token()}?PROLIFIC_PID=p1")
        page.locator("select").select_option(index=1)
        assert page.get_by_role("button", name="Begin").is_disabled()
        page.get_by_role("checkbox").check()
        page.get_by_role("button", name="Begin").click()
        for item in range(6):
            page.wait_for_selector(f".step:has-text('{item + 1} of 6')")
            page.keyboard.press(" ")
            page.wait_for_selector(".sound.heard")
            page.keyboard.press(str(tone_answer(test.seed, 1, item)))
        page.wait_for_selector("text=Listen to two examples first")
        page.keyboard.press("Enter")
        page.wait_for_selector(".prompt")
        for place in range(3):
            page.wait_for_selector(f".step:has-text('{place + 1} of 3')")
            sides = page.locator(".play").count()
            assert page.locator("input:enabled").count() == 0
            for number in range(sides):
                page.keyboard.press("abcdefgh"[number])
                page.wait_for_function("(n) => document.querySelectorAll('.heard').length >= n", arg=number + 1)
            for number, slider in enumerate(page.locator("input[type=range]").all()):
                slider.fill(str(10 * number))
            assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
            page.get_by_role("button", name="Weiter").click()
        page.wait_for_selector("text=Thank you!")
        page.fill("textarea", "fine")
        page.get_by_role("button", name="Send comment").click()
        page.wait_for_selector("text=Your comment has been saved")
        assert page.get_by_role("link").get_attribute("href") == "https://example.org/p1"
        assert page.locator(".code").inner_text() == "C1"
        context.close()
    assert troubles == []
    assert ratings.survey()[1]["comment"] == "fine"
    assert {rating.score for rating in ratings.ratings(test)} == {0, 10, 20, 30, 40, 50}
