"""The pages' player in a real browser, by pointer and by keyboard alone, and what the server says of a clip."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import small_player
from serving import serving
from small_player import RATE, SECONDS, clip

from milonga.core.records import Clip
from milonga.maths.clip_view import POINTS, clip_view


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(program=(small_player.__file__,)) as (_, link):
        yield link


@pytest.fixture
def page(browser, address) -> Iterator[Any]:
    page, errors = browser.new_page(viewport={"width": 700, "height": 700}), []
    page.set_default_timeout(120000)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.wait_for_selector(".mel[src]")
    yield page
    page.close()
    assert errors == []


def position(page: Any, number: int = 0) -> float:
    return page.evaluate(f"players[{number}].position()")


def test_what_is_said_of_a_clip():
    view = clip_view(clip("a"))
    assert (view["seconds"], view["rate"], len(view["points"])) == (SECONDS, RATE, 2 * POINTS)
    assert min(view["points"]) == pytest.approx(-25, abs=0.2)
    assert view["points"][: POINTS // 2] == [0.0] * (POINTS // 2)  # the quarter that is silent
    assert view["peak"] == pytest.approx(20 * np.log10(0.25), abs=0.1)
    assert view["lufs"] is not None
    assert view["picture"].startswith("data:image/png;base64,")
    silence = clip_view(Clip(np.zeros(3, np.float32), RATE))
    assert (silence["peak"], silence["lufs"], len(silence["points"])) == (None, None, 6)


def test_a_sound_is_played_to_its_end_and_then_counts_as_heard(page):
    page.get_by_role("button", name="Play Sound a").click()
    page.wait_for_selector(".sound.playing")
    page.wait_for_selector(".sound.heard")
    assert page.evaluate("log") == ["heard a"]
    page.wait_for_selector(".sound.playing", state="detached")
    assert position(page) == 0
    assert "LUFS · peak −12.0 dB" in page.locator(".level").first.inner_text()


def test_a_pause_keeps_the_position_and_a_part_that_was_left_out_is_not_heard(page):
    page.evaluate("players[0].seek(0.5)")
    page.evaluate("players[0].play()")
    page.get_by_role("button", name="Pause Sound a").wait_for()
    page.evaluate("players[0].play(0.5)")
    page.wait_for_function("() => players[0].position() > 0.6 && (players[0].pause(), true)")  # at once: it is short
    paused = position(page)
    assert 0.6 < paused < 1
    page.evaluate("players[0].play()")
    page.wait_for_function("() => !players[0].isPlaying() && players[0].position() === 0")
    assert page.evaluate("log") == []
    page.evaluate("players[0].play(0)")
    page.wait_for_function("() => log.length === 1")


def test_two_sounds_switch_at_the_same_position(page):
    page.evaluate("players[0].play()")
    page.wait_for_function("() => players[0].position() > 0.3 && (players[1].play(), true)")
    page.wait_for_function("() => players[1].isPlaying() && !players[0].isPlaying()")
    assert position(page, 1) > 0.3
    page.wait_for_function("() => !players[1].isPlaying()")
    assert page.evaluate("log") == []  # neither was heard in full


def test_the_other_sound_starts_over_when_the_first_has_just_been_heard(page):
    page.evaluate("async () => { await decode('/sound/b'); players[0].play(); }")
    page.wait_for_function("() => log.length === 1 && (players[1].play(), true)")  # up to two cells before its end
    page.wait_for_function("() => log.length === 2")


def test_a_dragged_region_is_selected_and_loops(page):
    box = page.locator(".screen").first.bounding_box()
    y = box["y"] + 20
    page.mouse.move(box["x"] + 0.2 * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], y, steps=4)
    page.mouse.up()
    first, last = page.evaluate("group.region")
    assert (first, last) == (pytest.approx(0.2, abs=0.01), pytest.approx(0.6, abs=0.01))
    page.get_by_role("button", name="Loop Sound a").click()
    page.evaluate("players[0].play()")
    page.wait_for_function("() => players[0].position() > 0.5")
    page.wait_for_function("() => players[0].position() < 0.4")  # it has begun again
    assert page.evaluate("players[0].isPlaying()")
    page.mouse.click(box["x"] + 0.9 * box["width"], y)  # outside the region: it goes
    assert page.evaluate("group.region") is None
    assert page.evaluate("log") == ["region", "none"]
    page.evaluate("players[0].pause()")


def test_everything_by_keyboard_alone(page):
    page.locator(".screen").first.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert position(page) == pytest.approx(0.3)
    page.keyboard.press("[")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("]")
    assert page.evaluate("group.region") == [pytest.approx(0.3), pytest.approx(0.9)]
    spoken = page.locator(".screen").first.get_attribute("aria-valuetext")
    assert spoken == "0.30 of 1.00 seconds; region 0.30 to 0.90"
    page.keyboard.press("l")
    assert page.locator(".loop").first.get_attribute("aria-pressed") == "true"
    page.keyboard.press(" ")
    page.wait_for_selector(".sound.playing")
    page.keyboard.press(" ")
    page.wait_for_selector(".sound.playing", state="detached")
    page.keyboard.press("Escape")
    assert page.evaluate("group.region") is None
    page.keyboard.press("Home")
    assert position(page) == 0


def test_a_sound_that_is_not_there_says_so(page):
    page.get_by_role("button", name="Play Lost").click()
    page.wait_for_selector(".trouble:visible")
    assert "there is no such clip" in page.locator(".trouble:visible").inner_text()


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_the_screen_and_shows_in_forced_colours(page, width):
    page.set_viewport_size({"width": width, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.emulate_media(forced_colors="active")
    page.evaluate("players[0].setRegion([0.2, 0.6])")
    assert page.locator(".selection").first.evaluate("(one) => getComputedStyle(one).borderLeftWidth") == "3px"
