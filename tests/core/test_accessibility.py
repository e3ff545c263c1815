"""axe-core on every page: no serious fault in light, dark and forced colours.

axe-core is not part of this repository: `npm install --no-save axe-core` in its root, or its `axe.min.js` in
MILONGA_AXE, makes these tests run.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_player
import small_studio
import small_test
from serving import serving

from milonga.listening_test.ratings import Ratings

AXE = Path(os.environ.get("MILONGA_AXE") or Path(__file__).parents[2] / "node_modules/axe-core/axe.min.js")
pytestmark = pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not here: npm install --no-save axe-core")
SERIOUS = ("serious", "critical")


@pytest.fixture
def page(browser) -> Any:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, bypass_csp=True)  # axe is no page's script
    page = context.new_page()
    page.set_default_timeout(120000)
    yield page
    context.close()


def faults(page: Any) -> list[str]:
    """Serious faults that axe sees on the page, in light and in dark."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for fault in page.evaluate("async () => (await axe.run()).violations"):
            if fault["impact"] in SERIOUS:
                found += [f"{scheme}: {fault['id']}: {node['target']}" for node in fault["nodes"]]
    return found


def test_the_player(page):
    with serving(program=(small_player.__file__,)) as (_, link):
        page.goto(link)
        page.wait_for_selector(".mel[src]")
        assert faults(page) == []


def test_the_studio(page, tmp_path):
    with serving(str(tmp_path / "s"), "0", "0", program=(small_studio.__file__,)) as (_, link):
        page.goto(link)
        page.wait_for_selector(".chip")
        page.fill("#words", "a bell rings")
        page.fill("#ask [name=count]", "2")
        page.get_by_role("button", name="Generate").click()
        page.wait_for_selector(".failed")
        page.wait_for_selector("#progress", state="hidden")
        page.locator("#more > summary").click()
        page.locator(".keep").first.click()
        page.wait_for_selector(".take.kept")
        assert faults(page) == []
        page.get_by_role("button", name="Edit Take 1").click()
        page.wait_for_selector("#editor .mel[src]")
        assert faults(page) == []
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Compare two").click()
        page.wait_for_selector(".comparison .mel[src]")
        assert faults(page) == []


def test_the_pairs(page, tmp_path):
    from fake_parts import RECIPE, FakeParts

    from milonga.experiment import run as pipeline
    from milonga.experiment.recipe import parse_recipe

    pipeline.run(parse_recipe(RECIPE, "fake.toml", []), tmp_path / "run", until="pair", parts=FakeParts())
    with serving("pairs", str(tmp_path / "run"), "--no-open") as (_, link):
        page.goto(link)
        page.wait_for_selector(".mel[src]")
        assert faults(page) == []


def test_the_report(page, tmp_path):
    from synthetic_run import make_run

    from milonga.reports.html import write_report

    page.goto(write_report(make_run(tmp_path / "run", prompts=8)).as_uri())
    page.wait_for_selector(".mel[src]", state="attached")
    assert faults(page) == []


def test_the_leaderboard(page, tmp_path):
    import milonga
    from milonga.core.audio import write_audio

    for system in range(2):
        for number in range(3):
            write_audio(tmp_path / f"s{system}" / f"{number}.wav", small_test.sound(3 * system + number, 0.5))
    options = {"weights": "nano", "metrics": ["silent", "clipped"], "resamples": 100}
    milonga.evaluate(tmp_path / "s0", tmp_path / "s1", out=tmp_path / "out", audio=True, **options)
    page.goto((tmp_path / "out" / "leaderboard.html").as_uri())
    page.wait_for_selector(".sound", state="attached")
    assert faults(page) == []


@pytest.mark.parametrize("kind", ["rate", "compare", "mushra"])
def test_the_listening_test(page, tmp_path, kind):
    """Consent and questions, the headphone check, the examples, a trial, and the admin's page."""
    test = small_test.small_test(tmp_path / "test", 5, replace(small_test.PLAN, kinds=(kind,), per_rater=1))
    (tmp_path / "test" / "page.toml").write_text('consent = "I agree."\nask = ["device", "age"]\ncontact = "a@b.org"\n')
    ratings = Ratings(tmp_path / "test" / "ratings.sqlite")
    with small_test.served(tmp_path / "test") as (_, link):
        base, token = link.split("/admin")[0], ratings.invite(1)[0]
        page.goto(f"{base}/r/{token}")
        page.wait_for_selector(".consent")
        assert faults(page) == []
        for select in page.locator("select").all():
            select.select_option(index=1)
        page.get_by_role("checkbox").check()
        page.get_by_role("button", name="Begin").click()
        page.wait_for_selector(".step:has-text('1 of 6')")
        assert faults(page) == []
        small_test.Rater(base, token, ratings.number_of(token) or 0, test).tones()
        page.reload()
        page.wait_for_selector("text=Listen to two examples first")
        assert faults(page) == []
        page.keyboard.press("Enter")
        page.wait_for_selector(".prompt")
        assert faults(page) == []
        page.goto(link)
        page.wait_for_selector("tbody tr")
        assert faults(page) == []
