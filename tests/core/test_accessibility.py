"""axe-core on every page: no serious fault in light, dark and forced colours.

axe-core is not part of this repository: `npm install --no-save axe-core` in its root, or its `axe.min.js` in
MILONGA_AXE, makes these tests run.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import small_player
import small_studio
from serving import serving

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
