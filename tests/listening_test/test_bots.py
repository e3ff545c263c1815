"""Honest raters and bots of growing cunning take a served test, over HTTP and in Chromium: every bot is excluded, no
honest rater is."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from serving import ask
from simulated_raters import Bot, Honest, PageBots
from small_test import PLAN, served, small_test

from milonga.listening_test.sessions import Sessions

BOTS = ("instant", "waits", "double", "random", "five")
SECONDS = 0.12  # a clip's length: what matters is its ratio to the time that a rater takes


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds", [("rate", "mushra"), pytest.param(("rate", "compare"), marks=pytest.mark.slow)]
)  # fmt: skip
def test_every_bot_is_excluded_and_no_honest_rater(tmp_path: Path, kinds) -> None:
    folder = tmp_path / "test"
    test = small_test(folder, plan=replace(PLAN, kinds=kinds, per_rater=3), seconds=SECONDS)
    sessions = Sessions(folder)
    tokens = sessions.ratings.invite(4 + len(BOTS))
    with served(folder) as (_, link):
        base = link.split("/admin")[0]
        rest = [(base, token, number, test, folder) for number, token in enumerate(tokens, 1)]
        bots = [Bot(kind, *own) for kind, own in zip(BOTS, rest[4:], strict=True)]
        threads = [threading.Thread(target=rater.session) for rater in [*(Honest(*own) for own in rest[:4]), *bots]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(240)
        assert not any(thread.is_alive() for thread in threads)
        progress = ask(base, "GET", link[len(base) :] + "/state")[2]["raters"]
    excluded = {verdict.rater: verdict.excluded for verdict in sessions.verdicts() if verdict.excluded}
    assert {row["name"]: row["excluded"] for row in progress if row["excluded"]} == excluded
    assert set(excluded) == {f"r{number}" for number in range(5, 10)}
    assert "attention" in excluded["r6"]
    # On a busy machine a request may take longer than a clip, and no script is then too early.
    assert sessions.ratings.early() == {f"r{bot.number}": bot.refused for bot in bots if bot.refused}
    judged = {rater.number: rater.judged for rater in sessions.ratings.raters()}
    assert all(judged[number] == len(sessions.ratings.trials(number)) for number in (1, 2, 3, 4, 6, 8, 9))


@pytest.mark.slow  # a browser with five pages, and nine raters at once
@pytest.mark.timeout(900)
def test_bots_in_chromium_are_excluded_beside_honest_raters_over_http(browser, tmp_path: Path) -> None:
    folder = tmp_path / "test"
    test = small_test(folder, plan=replace(PLAN, per_rater=3), seconds=1.0)
    sessions = Sessions(folder)
    tokens = sessions.ratings.invite(4 + len(BOTS))
    with served(folder) as (_, link):
        rest = [(link.split("/admin")[0], token, number, test, folder) for number, token in enumerate(tokens, 1)]
        bots = [Bot(kind, *own) for kind, own in zip(BOTS, rest[4:], strict=True)]
        threads = [threading.Thread(target=Honest(*own).session) for own in rest[:4]]
        for thread in threads:
            thread.start()
        PageBots(browser, bots).wait(600)
        for thread in threads:
            thread.join(600)
    excluded = {verdict.rater: verdict.excluded for verdict in sessions.verdicts() if verdict.excluded}
    assert set(excluded) == {f"r{number}" for number in range(5, 10)}
    assert bots[0].refused > 2  # it never plays anything
    assert "timing" in excluded["r5"]
    assert all("attention" in excluded[f"r{number}"] for number in (6, 8, 9))
