"""The studio as a process: over HTTP, killed with -9 on the way, and in a real browser at both widths."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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
        ("DELETE", "/takes"),
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
        "/takes/%2e%2e/wav",
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
    for order, status, said in (
        ({"prompt": " ", "systems": ["nano"]}, 400, "the prompt is empty"),
        ({"prompt": "x", "systems": ["zebra"]}, 400, "choose a system"),
        ({"prompt": "x", "systems": ["nano"], "steps": 9999}, 400, "steps must be between 1 and 1000, not 9999"),
        ({"prompt": "x", "systems": ["nano"], "count": "many"}, 422, "count: "),
        ({"prompt": "x", "systems": ["nano"], "owner": "me"}, 422, "owner: "),
    ):
        found = ask(base, "POST", f"{path}/takes", order)
        assert found[0] == status, found
        assert said in found[2]["error"]
    assert ask(base, "PUT", f"{path}/takes/nobody", {"keep": True})[2] == {"error": "there is no such take"}
    headers = ask(base, "GET", path)[1]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Cache-Control"] == "no-store"


def test_in_a_real_browser_takes_are_asked_for_heard_kept_and_compared_by_keyboard(browser, place) -> None:
    base, _, folder = place
    store, link = Takes(folder / "ratings.sqlite"), f"{base}{place[1]}"
    page, troubles, urls = browser.new_page(viewport={"width": 1280, "height": 900}), [], []
    page.set_default_timeout(120000)
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: urls.append(request.url))
    page.goto(link)
    page.wait_for_selector(".chip")
    page.keyboard.press("/")
    page.keyboard.type(HOSTILE)
    page.fill("[name=count]", "1")
    page.focus("#words")
    page.keyboard.press("Enter")
    page.wait_for_selector(".failed")  # the system that cannot be loaded
    assert "holds no usable model" in page.locator(".failed .status").inner_text()
    page.wait_for_function("() => document.querySelectorAll('.verdict').length === 2")
    page.wait_for_selector("#progress", state="hidden")
    assert page.locator("#stage h1").inner_text() == HOSTILE
    assert page.title() == "Studio · Milonga"
    assert page.locator("img").count() == 0
    page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    page.wait_for_selector(".play.played")
    page.keyboard.press("k")
    page.wait_for_selector(".take.kept")
    assert [one.keep for one in store.all_generated()] == [True, None]
    page.keyboard.press("c")
    page.wait_for_selector(".comparison")
    assert not any(name in page.locator(".comparison").inner_text() for name in ("nano", "aligned"))
    page.keyboard.press("1")
    page.wait_for_selector("text=All pairs of takes")
    assert len(store.choices()) == 1
    page.locator(".take").nth(1).get_by_role("button", name="Discard").click()
    page.wait_for_selector(".take.dropped")
    page.reload()
    page.wait_for_selector(".take.dropped")
    assert [one.keep for one in store.all_generated()] == [True, False]
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    nameless = """() => [...document.querySelectorAll("button, input, textarea, a, [role=progressbar]")].filter((one) =>
        !(one.textContent.trim() || one.getAttribute("aria-label") || (one.labels && one.labels.length))).length"""
    assert page.evaluate(nameless) == 0
    page.close()
    assert troubles == []
    assert all(url.startswith((base, "data:")) for url in urls)


def test_in_a_real_browser_the_best_takes_come_first_and_the_rest_at_a_click(browser, tmp_path: Path) -> None:
    with served(tmp_path / "s") as (_, link):
        page, troubles = browser.new_page(viewport={"width": 390, "height": 844}), []
        page.set_default_timeout(120000)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(link)
        page.wait_for_selector(".chip")
        for name in ("runs/demo/aligned", "lost"):
            page.locator(f".chip input[value='{name}']").uncheck()
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
