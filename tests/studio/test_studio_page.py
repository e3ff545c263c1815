"""The studio as a process: over HTTP, killed with -9 on the way, and in a real browser at both widths."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import small_studio
from serving import ask, serving
from small_studio import HOSTILE, until

from milonga.core.store import Run
from milonga.studio.clips import Takes


def served(folder: Path, port: int = 0, pause: float = 0.0) -> Any:
    """The small studio as a process, and its link."""
    return serving(str(folder), str(port), str(pause), program=(small_studio.__file__,))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """(address, path behind the token, folder) of a served studio."""
    folder = tmp_path_factory.mktemp("page") / "s"
    with served(folder) as (_, link):
        (folder / "secret.flac").write_bytes(b"not yours")
        yield link.partition("/studio/")[0], urlsplit(link).path, folder


def hear_both(page: Any) -> None:
    """Plays both sounds of a comparison, each until the page has noted it."""
    for key in "ab":
        page.keyboard.press(key)
        page.wait_for_function(
            f"() => document.querySelectorAll('.comparison .heard').length === {'ab'.index(key) + 1}"
        )


@pytest.mark.slow
def test_killed_with_9_nothing_that_was_acknowledged_is_lost_and_the_rest_is_made(tmp_path: Path) -> None:
    folder, decided = tmp_path / "s", {}
    order = {"prompt": "a bell", "systems": ["nano", "runs/demo/aligned"], "count": 8, "seed": 3}
    with served(folder, pause=0.02) as (process, link):
        base, path = link.partition("/studio/")[0], urlsplit(link).path
        status, _, state = ask(base, "POST", f"{path}/takes", order)
        assert status == 200
        wanted = [one["id"] for one in state["takes"]]
        assert len(wanted) == 16
        while len(decided) < 3:
            for one in ask(base, "GET", f"{path}/state")[2]["takes"]:
                if one["generated"] and one["id"] not in decided:
                    keep = len(decided) % 2 == 0
                    assert ask(base, "PUT", f"{path}/takes/{one['id']}", {"keep": keep})[0] == 200
                    decided[one["id"]] = keep
        process.kill()
        process.wait()
    store = Takes(folder / "ratings.sqlite")
    assert store.num_waiting() > 0
    assert {one.id: one.keep for one in store.all_generated() if one.keep is not None} == decided
    with served(folder) as (_, again):
        assert urlsplit(again).path == path  # the link is still the same
        until(lambda: store.num_waiting() == 0)
        takes = ask(again.partition("/studio/")[0], "GET", f"{path}/state")[2]["takes"]
    assert [one["id"] for one in takes] == wanted
    assert all(one["generated"] for one in takes)
    assert {one["id"]: one["keep"] for one in takes if one["keep"] is not None} == decided
    assert Run(folder).stage("generate").names() == sorted(f"take-{one}" for one in wanted)


@pytest.mark.parametrize("token", ["", "x", "%00", "..", "%2e%2e", "A" * 22, "%27%20OR%201=1"])
def test_without_the_token_nothing_is_there(place, token: str) -> None:
    base = place[0]
    for method, tail in (
        ("GET", ""),
        ("GET", "/state"),
        ("POST", "/takes"),
        ("GET", "/history"),
        ("GET", "/kept.zip"),
        ("POST", "/upload"),
        ("DELETE", "/prompts/x/queue"),
        ("GET", "/comparison"),
    ):
        assert ask(base, method, f"/studio/{token}{tail}")[0] in (404, 405)
    assert ask(base, "POST", f"/studio/{token}/takes", {"prompt": "x", "systems": ["nano"]})[0] in (404, 405)


@pytest.mark.parametrize(
    "tail",
    [
        "/takes/secret/sound",
        "/takes/..%2f..%2fsecret/sound",
        "/takes/../secret.flac",
        "/takes/%2e%2e/original",
        "/test.json",
    ],
)
def test_no_request_names_a_file(place, tail: str) -> None:
    base, path, _ = place
    status, _, body = ask(base, "GET", path + tail)
    assert status in (404, 405)
    assert b"not yours" not in (body if isinstance(body, bytes) else b"")
    assert ask(base, "GET", "/page/../studio.py")[0] == 404
    assert ask(base, "GET", "/ratings.sqlite")[0] == 404


def test_what_cannot_be_asked_for_is_told_in_plain_words(place) -> None:
    base, path, _ = place
    for order, status, field, said in (
        ({"prompt": " ", "systems": ["nano"]}, 400, "prompt", "The prompt is empty"),
        ({"prompt": "\ud800", "systems": ["nano"]}, 400, "prompt", "a lone surrogate"),
        ({"prompt": "x", "systems": ["zebra"]}, 400, "systems", "Choose a system"),
        ({"prompt": "x", "systems": ["nano"], "steps": 9999}, 400, "steps", "between 1 and 1000, not 9999"),
        ({"prompt": "x", "systems": ["nano"], "count": "many"}, 422, "count", "count: "),
        ({"prompt": "x", "systems": ["nano"], "owner": "me"}, 422, "owner", "owner: "),
    ):
        answered, _, body = ask(base, "POST", f"{path}/takes", order)
        assert (answered, body["field"]) == (status, field)
        assert said in body["error"]
    assert ask(base, "POST", f"{path}/takes", {"prompt": "x" * 20_000, "systems": ["nano"]})[0] == 413
    assert ask(base, "PUT", f"{path}/takes/x", {"title": "x" * 5_000})[0] == 413
    notes = ask(base, "POST", f"{path}/upload?name=notes.txt", b"no audio")
    assert notes[0] == 400
    assert "notes.txt" in notes[2]["error"]
    assert ask(base, "PUT", f"{path}/takes/nobody", {"keep": True})[2] == {"error": "there is no such take"}
    headers = ask(base, "GET", path)[1]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store"


def test_other_hosts_and_other_sites_pages_get_nothing(place) -> None:
    base, path, _ = place
    assert ask(base, "GET", f"{path}/state", headers={"Host": "evil.example"})[0] == 400
    order = {"prompt": "x", "systems": ["nano"]}
    assert ask(base, "POST", f"{path}/takes", order, {"Sec-Fetch-Site": "cross-site"})[0] == 403
    headers = ask(base, "POST", f"{path}/takes", {"prompt": "x" * 20_000})[1]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


@pytest.mark.slow
def test_an_interruption_while_a_take_is_made_ends_the_server_without_a_crash(tmp_path: Path) -> None:
    with served(tmp_path / "s", pause=0.2) as (process, link):
        base, path = link.partition("/studio/")[0], urlsplit(link).path
        ask(base, "POST", f"{path}/takes", {"prompt": "a bell", "systems": ["nano"], "count": 3})
        until(lambda: ask(base, "GET", f"{path}/state")[2]["current"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)
    assert Takes(tmp_path / "s" / "ratings.sqlite").num_waiting() > 0  # the next server makes them


class Visit:
    """A page of the studio, and what it said on the console and asked of the network."""

    def __init__(self, browser: Any, link: str, width: int = 1280) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900})
        self.page, self.troubles, self.urls = self.context.new_page(), [], []
        self.page.set_default_timeout(120000)
        self.page.on("console", lambda message: self.troubles.append(message.text))
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("request", lambda request: self.urls.append(request.url))
        self.page.goto(link)
        self.page.wait_for_selector(".chip", state="attached")

    def order(self, prompt: str, count: int = 1) -> None:
        """Asks for takes by keyboard and waits until they are made."""
        self.page.evaluate("() => document.activeElement.blur()")
        self.page.keyboard.press("/")
        self.page.fill("#words", prompt)
        self.page.fill("#ask [name=count]", str(count))
        self.page.focus("#words")
        self.page.keyboard.press("Enter")
        self.page.wait_for_function(
            "(prompt) => document.querySelector('#stage h1')?.textContent === prompt", arg=prompt
        )
        self.page.wait_for_selector("#progress", state="hidden")

    def close(self) -> None:
        """Nothing went wrong, and nothing but the server was asked."""
        base = self.page.url.partition("/studio/")[0]
        self.context.close()
        refused = "the server responded with a status of 400"  # what Chromium itself says of a refusal
        assert [text for text in self.troubles if refused not in text] == []
        assert all(url.startswith((base, "data:")) for url in self.urls)


def test_in_a_real_browser_takes_are_asked_for_heard_kept_and_compared_by_keyboard(browser, place) -> None:
    base, _, folder = place
    store, visit = Takes(folder / "ratings.sqlite"), Visit(browser, f"{base}{place[1]}")
    page = visit.page
    visit.order(HOSTILE)
    assert "holds no usable model" in page.locator(".failed .status").inner_text()  # the system that cannot be loaded
    assert page.locator("#stage h1").inner_text() == HOSTILE
    assert page.title() == "Studio · Milonga"
    assert page.locator("img:not(.mel)").count() == 0
    page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    page.wait_for_selector(".take .heard")
    page.keyboard.press("k")
    page.wait_for_selector(".take.kept")
    assert [take.keep for take in store.all_generated()] == [True, None]
    page.keyboard.press("c")
    page.wait_for_selector(".comparison")
    assert not any(name in page.locator(".comparison").inner_text() for name in ("nano", "aligned"))
    page.keyboard.press("1")
    assert page.locator(".choice:enabled").count() == 0  # nothing was heard yet
    hear_both(page)
    page.keyboard.press("1")
    page.wait_for_selector("text=All takes have been compared")
    assert len(store.choices()) == 1
    page.wait_for_timeout(1000)  # a poll later it is still there
    assert page.locator("text=All takes have been compared").count() == 1
    page.locator(".take").nth(1).get_by_role("button", name="Discard").click()
    page.wait_for_selector(".take.dropped")
    page.reload()
    page.wait_for_selector(".take.dropped")
    assert [take.keep for take in store.all_generated()] == [True, False]
    with page.expect_download() as download:
        page.get_by_role("link", name="Download kept").click()
    assert download.value.suggested_filename == "kept.zip"
    page.get_by_label("Hide model names").check()
    assert "nano" not in page.locator("#stage").inner_text()
    assert "Model A" in page.locator("#stage").inner_text()
    page.get_by_label("Hide model names").uncheck()
    nameless = """() => [...document.querySelectorAll("button, input, select, textarea, a, summary, [role=slider],"
        + "[role=progressbar]")].filter((one) => !(one.textContent.trim() || one.getAttribute("aria-label")
        || (one.labels && one.labels.length))).length"""
    assert page.evaluate(nameless) == 0
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    visit.close()


@pytest.mark.slow
def test_in_a_real_browser_a_region_is_edited_and_a_take_renamed_deleted_and_restored(browser, place) -> None:
    visit = Visit(browser, f"{place[0]}{place[1]}", 390)
    page, store = visit.page, Takes(place[2] / "ratings.sqlite")
    for name in ("runs/demo/aligned", "lost"):
        page.locator(f".chip input[value='{name}']").uncheck(force=True)
    page.fill("#ask [name=seed]", "x")
    visit.page.fill("#words", "wind howls")
    visit.page.get_by_role("button", name="Generate").click()
    page.wait_for_selector("#ask-seed-error:visible")  # the error is at its field, and stays there
    page.wait_for_timeout(1000)
    assert page.locator("#ask-seed-error").is_visible()
    page.fill("#ask [name=seed]", "5")
    visit.order("wind howls")
    page.wait_for_selector(".take .mel[src]", state="attached")
    page.locator(".take .screen").scroll_into_view_if_needed()
    box = page.locator(".take .screen").bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 20, steps=3)
    page.mouse.up()
    page.get_by_role("button", name="Edit 0.1 s to 0.3 s").click()
    page.wait_for_selector("#editor .mel[src]")
    page.fill("#editing [name=words]", "a cat meows")
    page.fill("#editing [name=stop]", "7")
    page.locator("#editing .go").click()
    page.wait_for_selector("#editing .error:visible")
    assert "inside the clip" in page.locator("#editing .error:visible").inner_text()
    page.fill("#editing [name=stop]", "0.3")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#editing .go").click()
    page.wait_for_selector("h2:has-text('Edits')")
    page.wait_for_selector("#progress", state="hidden")
    [edited] = [take for take in store.all_generated() if take.edit == "region"]
    assert (edited.words, edited.start, edited.stop) == ("a cat meows", pytest.approx(0.1, abs=0.02), 0.3)
    page.get_by_label("More actions for Take 2").click()
    page.get_by_role("button", name="Rename: Take 2").click()
    page.fill("#renaming [name=title]", "cat in the wind")
    page.keyboard.press("Enter")
    page.wait_for_selector(".take:has-text('cat in the wind')")
    page.get_by_label("More actions for cat in the wind").click()
    page.get_by_role("button", name="Delete cat in the wind").click()
    page.wait_for_selector("h2:has-text('Edits')", state="detached")
    page.get_by_role("button", name="Undo").click()
    page.wait_for_selector(".take:has-text('cat in the wind')")
    page.get_by_label("More actions for Take 1").click()
    page.get_by_role("button", name="Use this seed: Take 1").click()
    page.wait_for_function("() => document.querySelector('#ask [name=seed]').value === '5'")
    page.get_by_label("More actions for Take 1").click()
    page.get_by_role("button", name="More like this: Take 1").click()
    page.wait_for_function("() => document.querySelectorAll('.take .keep').length === 6")
    page.set_input_files("#file", {"name": "rain.wav", "mimeType": "audio/wav", "buffer": wav()})
    page.wait_for_selector("#stage h1:has-text('wind howls')")  # the prompt that is typed is the file's
    page.wait_for_selector("h2:has-text('Files')")
    page.get_by_label("Search").fill("no such prompt")
    page.wait_for_selector("text=No matching prompts")
    visit.close()


def wav() -> bytes:
    from milonga.core.audio import wav_bytes
    from milonga.core.records import Clip

    return wav_bytes(Clip(np.sin(np.arange(8000) / 9).astype(np.float32) / 2, 8000), {})


@pytest.mark.slow
def test_in_a_real_browser_the_last_answer_of_a_comparison_is_undone(browser, place) -> None:
    visit = Visit(browser, f"{place[0]}{place[1]}")
    page, store = visit.page, Takes(place[2] / "ratings.sqlite")
    for name in ("runs/demo/aligned", "lost"):
        page.locator(f".chip input[value='{name}']").uncheck(force=True)
    before = len(store.choices())
    visit.order("a door creaks", 3)
    page.keyboard.press("c")
    page.wait_for_selector("text=3 comparisons left")
    hear_both(page)
    page.keyboard.press("3")
    page.wait_for_selector("text=2 comparisons left")
    assert len(store.choices()) == before + 1
    page.keyboard.press("u")
    page.wait_for_selector("text=3 comparisons left")
    assert len(store.choices()) == before
    page.keyboard.press("Escape")
    page.wait_for_selector(".take")
    visit.close()


@pytest.mark.slow
def test_in_a_real_browser_the_best_takes_come_first_and_the_rest_at_a_click(browser, tmp_path: Path) -> None:
    with served(tmp_path / "s") as (_, link):
        page, troubles = browser.new_page(viewport={"width": 390, "height": 844}), []
        page.set_default_timeout(120000)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(link)
        page.wait_for_selector(".chip")
        for name in ("runs/demo/aligned", "lost"):
            page.locator(f".chip input[value='{name}']").uncheck(force=True)
        page.fill("#words", "a bell rings")
        page.fill("[name=count]", "5")
        page.get_by_label("Best first").fill("2")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=Show 3 more")
        visible = page.locator(".take:visible .settings").all_inner_texts()
        assert [text.rpartition(" · ")[2] for text in visible] == ["rank 1", "rank 2"]
        page.get_by_role("button", name="Show 3 more").click()
        visible = page.locator(".take:visible .settings").all_inner_texts()
        assert [text.rpartition(" · ")[2] for text in visible] == [f"rank {rank}" for rank in (1, 2, 3, 4, 5)]
        assert page.locator(".more").is_hidden()
        page.get_by_label("Best first").fill("1")
        assert page.locator(".take:visible").count() == 1
        page.get_by_label("Best first").fill("")
        numbers = [text.rpartition("no. ")[2] for text in page.locator(".take:visible .settings").all_inner_texts()]
        assert numbers == ["1", "2", "3", "4", "5"]  # all, in the order of their requests, without ranks
        page.set_viewport_size({"width": 1280, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
        page.close()
        assert troubles == []
