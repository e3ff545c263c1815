"""`milonga pairs`: every pair can be found and both its clips heard, by this machine's browser and no other page."""

import json
import math
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fake_parts import RECIPE, FakeParts
from serving import ask, serving

from milonga.core import web
from milonga.core.audio import clips_of
from milonga.core.errors import RecipeError, ServiceError, StoreError
from milonga.core.records import Pair, Prompt
from milonga.core.store import Run
from milonga.data.pairs import read_pairs
from milonga.experiment import run as pipeline
from milonga.experiment.recipe import parse_recipe
from milonga.reports import pairs as pages

HOSTILE = "<img src=x onerror=\"document.title='owned'\"> a bell & 'quotes'"
LIMITS = 'pair.thresholds=[{scorer="one", min_winner_score=0.4, min_loser_score=0.0, min_margin=0.0, max_margin=1.0}]'


class Parts(FakeParts):
    def prompt_source(self, source: str) -> list[Prompt]:
        return [Prompt.of(HOSTILE, source), *super().prompt_source(source)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("pairs") / "run"
    return pipeline.run(parse_recipe(RECIPE, "fake.toml", [LIMITS]), folder, until="pair", parts=Parts())


@pytest.fixture(scope="module")
def place(run) -> Iterator[str]:
    with serving("pairs", str(run.path), "--no-open") as (_, address):
        yield address


def get(place: str, path: str) -> Any:
    status, _, body = ask(place, "GET", f"{urlsplit(place).path}/{path}")
    assert status == 200, body
    return body


def stored(run: Run) -> list[Pair]:
    return run.stage("pair").read_records(Pair) + run.stage("refused").read_records(Pair)


def test_every_pair_is_on_one_page_and_its_clips_are_the_runs(run, place):
    about, everything = get(place, "about"), stored(run)
    assert sum(about["verdicts"].values()) == len(everything) == 33
    assert about["strategies"] == ["1", "2"]
    found = [one for start in (0, 20) for one in get(place, f"pairs?start={start}")["pairs"]]
    assert [one["id"] for one in found] == [one.id for one in everything]
    assert found[0]["chosen"]["seed"] == str(everything[0].chosen_seed)
    clips = {}
    for shard in run.stage("generate").names():
        clips |= clips_of(run.stage("generate").read_table(shard))
    for one in (found[0]["chosen"], found[-1]["rejected"]):
        assert get(place, f"clips/{one['id']}")[:4] == b"fLaC"
        assert one["id"] in clips


def test_pairs_are_filtered_and_sorted(run, place):
    kept = [one for one in stored(run) if not one.refused]
    assert get(place, "pairs?verdict=kept")["total"] == len(kept)
    by_reason = {one["refused"].partition(":")[0] for one in get(place, "pairs?verdict=min_winner_score")["pairs"]}
    assert by_reason == {"min_winner_score"}
    assert {one["strategy"] for one in get(place, "pairs?strategy=2")["pairs"]} == {"2"}
    assert {one["prompt"] for one in get(place, "pairs?words=NUMBER%207")["pairs"]} == {"sound number 7"}

    def deltas(order: str) -> list[float]:
        found = get(place, f"pairs?sort={order}&scorer=two")["pairs"]
        return [one["chosen"]["scores"]["two"] - one["rejected"]["scores"]["two"] for one in found]

    assert deltas("closest") == sorted(deltas("closest"))
    assert deltas("clearest") == sorted(deltas("clearest"), reverse=True)
    assert deltas("clearest")[0] > deltas("closest")[0]
    assert get(place, "pairs?words=no%20such")["pairs"] == []


@pytest.mark.parametrize("path", ["pairs?start=-1", "pairs?start=x", "pairs?scorer=nobody"])
def test_a_question_that_makes_no_sense_is_told(place, path):
    status, _, told = ask(place, "GET", f"{urlsplit(place).path}/{path}")
    assert status == 400
    assert told["error"].startswith("start must be a whole number")


@pytest.mark.parametrize("path", ["clips/../../manifest.json", "clips/", "manifest.json", "clips/0", "clips/0/view"])
def test_there_is_nothing_but_the_page_its_data_and_the_runs_clips(place, path):
    assert ask(place, "GET", f"{urlsplit(place).path}/{path}")[0] == 404


@pytest.mark.parametrize("token", ["", "x", "A" * 22])
def test_without_the_token_nothing_is_there(place, token):
    for path in ("", "/about", "/pairs"):
        assert ask(place, "GET", f"/pairs/{token}{path}")[0] == 404
    assert ask(place, "PUT", f"/pairs/{token}/pairs/x", {"action": "swap"})[0] in (404, 405)


def test_a_correction_is_stored_shown_and_trained_on(run, place, tmp_path):
    shutil.copytree(run.path, tmp_path / "run")
    copy = Run(tmp_path / "run")
    kept, refused = (copy.stage(stage).read_records(Pair) for stage in ("pair", "refused"))
    pages.Pairs(copy.path).correct(kept[0].id, "swap")
    pages.Pairs(copy.path).correct(kept[1].id, "drop")
    pages.Pairs(copy.path).correct(refused[0].id, "keep")
    pairs = pages.Pairs(copy.path)
    assert pairs.about()["verdicts"]["corrected by hand"] == 3
    [shown] = pairs.page({"pair": kept[0].id})["pairs"]
    assert (shown["chosen"]["id"], shown["correction"]) == (kept[0].rejected_id, "swap")
    trained = {pair.id: pair for pair in read_pairs(copy.path).pairs}
    assert trained.keys() == {pair.id for pair in kept} - {kept[1].id} | {refused[0].id}
    assert trained[kept[0].id].chosen_words == kept[0].rejected_words
    assert trained[kept[0].id].rejected_scores == kept[0].chosen_scores
    assert read_pairs(copy.path).refused[0].refused
    assert {pair["id"] for pair in pairs.page({"verdict": "corrected"})["pairs"]} == {kept[1].id}
    for pair in (kept[0], kept[1], refused[0]):
        pairs.correct(pair.id, "")  # taken back
    assert read_pairs(copy.path).pairs == read_pairs(run.path).pairs
    with pytest.raises(RecipeError, match="swap, drop, keep"):
        pairs.correct(kept[0].id, "delete")
    with pytest.raises(web.Unknown):
        pairs.correct("nobody", "swap")


def test_another_name_for_this_machine_gets_nothing(place):
    for host in ("evil.example", f"evil.example:{urlsplit(place).port}"):
        for path in ("", "about", "pairs"):
            assert ask(place, "GET", f"{urlsplit(place).path}/{path}", headers={"Host": host})[0] == 400


def test_a_score_that_is_not_a_number_is_null_and_sorts_as_closest(run):
    pairs = pages.Pairs(run.path)
    pairs.all[5] = pairs.all[5].model_copy(update={"chosen_scores": {"one": math.nan, "two": math.nan}})
    first = pairs.page({"sort": "closest"})["pairs"][0]
    assert first["id"] == pairs.all[5].id
    assert first["chosen"]["scores"] == {"one": None, "two": None}
    json.dumps(first, allow_nan=False)


def test_what_cannot_be_shown_is_told(run, tmp_path, place):
    with pytest.raises(StoreError, match="holds no pairs"):
        pages.application(tmp_path, "token")
    with pytest.raises(ServiceError, match="choose another --port"):
        pages.serve(run.path, urlsplit(place).port, pytest.fail)
    with pytest.raises(ServiceError, match="choose another --port"):
        pages.serve(run.path, 70000, pytest.fail)


@pytest.mark.slow
def test_the_command_serves_until_it_is_stopped(run):
    with serving("pairs", str(run.path), "--no-open") as (process, address):
        assert get(address, "about")["run"] == "run"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert (process.returncode, told) == (0, "")


@pytest.mark.slow
def test_in_a_real_browser_both_clips_play_and_a_pair_is_corrected(browser, run, tmp_path):
    from playwright.sync_api import expect

    shutil.copytree(run.path, tmp_path / "run")
    with serving("pairs", str(tmp_path / "run"), "--no-open") as (_, place):
        page, troubles, requests = browser.new_page(viewport={"width": 1100, "height": 900}), [], []
        page.set_default_timeout(120000)
        expect.set_options(timeout=120000)
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(place)
        page.select_option("select[name=verdict]", "")
        page.fill("input[name=words]", "quotes")
        expect(page.locator(".card")).to_have_count(3)
        assert page.locator(".card h2").first.inner_text() == HOSTILE
        assert page.title() == "Pairs of run · Milonga"
        page.locator("h1").click()
        for key in "wl":
            page.keyboard.press(key)
            page.wait_for_function(
                "(count) => document.querySelectorAll('.sound.heard').length === count", arg=" wl".index(key)
            )
        page.keyboard.press("j")
        assert page.evaluate("document.activeElement.className") == "card"
        pair = page.locator(".card").first.get_attribute("id")
        winner = page.locator(".card").first.locator(".chosen .sound").get_attribute("data-url")
        page.locator(".card").first.get_by_role("button", name="Swap winner and loser").click()
        page.wait_for_selector("text=The pair is swapped by hand")
        assert page.locator(".card").first.locator(".rejected .sound").get_attribute("data-url") == winner
        page.locator(".card").first.get_by_role("link", name="Link to this pair").click()
        expect(page.locator(".card")).to_have_count(1)
        page.reload()
        page.wait_for_selector(f"[id='{pair}']:has-text('swapped by hand')")
        page.get_by_role("link", name="Show all pairs").click()
        expect(page.locator(".card")).not_to_have_count(1)
        page.fill("input[name=words]", "")
        page.select_option("select[name=verdict]", "")
        expect(page.locator(".card")).to_have_count(20)
        page.click("#on")
        expect(page.locator(".card")).to_have_count(13)
        assert page.locator("#page").inner_text() == "Page 2 of 2"
        for width in (390, 1100):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=os.environ.get("MILONGA_SCREENSHOT") or str(Path(tmp_path) / "pairs.png"))
        page.close()
        assert troubles == []
        assert all(url.startswith((place.partition("/pairs/")[0], "data:")) for url in requests)
