"""A run whose captions a language model perturbs: the same whatever the timing, paid for once, and without its key."""

import json
import re
import time

import pytest
from chat_server import ChatServer, chat_server, fails, says
from fake_parts import RECIPE, FakeParts

from milonga.core.errors import RecipeError, ServiceError
from milonga.core.records import Refusal, Request
from milonga.core.store import Run, read_json
from milonga.experiment import run as pipeline
from milonga.experiment.recipe import parse_recipe
from milonga.experiment.registry import DEFAULT as registry

KEY = "sk-run-0123456789abcdef"


class Parts(FakeParts):
    """The fakes, with the registry's own perturbers."""

    perturber = staticmethod(registry.perturber)


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MILONGA_LLM_KEY", KEY)
    monkeypatch.setenv("MILONGA_CACHE", str(tmp_path / "cache"))


def go(out, server: ChatServer, *overrides: str, until: str = "pair") -> Run:
    settings = (f"plan.perturber=llm:tester@{server.url}", "plan.llm.timeout=5", "plan.llm.attempts=2", *overrides)
    return pipeline.run(parse_recipe(RECIPE, "fake.toml", settings), out, parts=Parts(), until=until)


def number_in(words: str) -> int:
    return int(re.search(r"sound number (\d+)", words)[1])


def honest(words: str, place: int):
    """Two captions of its own for each prompt; the earlier prompts take the longest."""
    n = number_in(words)
    time.sleep(0.01 * (9 - n))
    return says(f"1. hiss number {n}\n2. tone number {n}, softly")


def planned(run: Run) -> list[Request]:
    return run.stage("plan").read_records(Request)


def written(folder) -> bytes:
    return b"".join(file.read_bytes() + str(file).encode() for file in folder.rglob("*") if file.is_file())


@pytest.mark.slow
def test_results_do_not_depend_on_timing_and_a_second_run_asks_nothing(tmp_path, capsys, monkeypatch):
    with chat_server(honest) as server:
        many = go(tmp_path / "many", server, "plan.llm.concurrency=4")
        assert 2 <= server.most <= 4
        monkeypatch.setenv("MILONGA_CACHE", str(tmp_path / "elsewhere"))
        one = go(tmp_path / "one", server, "plan.llm.concurrency=1")
        assert len(server.words) == 20
        again = go(tmp_path / "again", server, "plan.llm.price_in=1", "plan.llm.price_out=1")
        assert len(server.words) == 20
    assert planned(many) == planned(one) == planned(again)
    assert {request.words for request in planned(many)} >= {"hiss number 7", "tone number 7, softly"}
    spent = read_json(again.path / "metrics" / "perturber.json")
    assert (spent["requests"], spent["cached"], spent["cached_tokens_out"], spent["cost"]) == (0, 10, 200, 0)
    assert "plan: 0 requests, 0 + 0 tokens, 10 answers from the cache, cost 0.0000" in capsys.readouterr().err


def test_the_key_is_sent_and_written_nowhere(tmp_path, capsys):
    def script(words, place):
        return says(f"{KEY} 1. {KEY}") if number_in(words) == 3 else honest(words, place)

    with chat_server(script) as server:
        run = go(tmp_path / "run", server)
    assert set(server.keys) == {f"Bearer {KEY}"}
    everything = written(tmp_path)
    assert b"hiss number 4" in everything
    assert KEY.encode() not in everything
    assert KEY not in "".join(capsys.readouterr())
    for name in run.stage("plan").names():  # columns are compressed
        assert KEY not in json.dumps(run.stage("plan").read_table(name).to_pylist())
    refused = run.stage("refused/plan").read_records(Refusal)
    assert len(refused) == 1
    assert KEY not in refused[0].reason


def test_a_refused_caption_is_kept_with_its_reason_and_the_others_go_on(tmp_path):
    def script(words, place):
        return says("I would rather not.") if number_in(words) in (2, 5) else honest(words, place)

    with chat_server(script) as server:
        run = go(tmp_path / "run", server)
    refused = run.stage("refused/plan").read_records(Refusal)
    assert len(refused) == 2
    for one in refused:
        assert one.reason.startswith("2: llm:tester@http://127.0.0.1:")
        assert one.reason.endswith("refused after 2 attempts: no list of 2 captions in 'I would rather not.'")
    told = {request.prompt for request in planned(run) if "2" in request.strategies}
    assert told == {f"sound number {n}" for n in range(10)} - {"sound number 2", "sound number 5"}


@pytest.mark.slow
def test_a_refused_key_stops_the_run_and_what_was_answered_is_kept(tmp_path):
    def script(words, place):
        return fails(401, f"no such key: {KEY}") if place >= 4 else honest(words, place)

    with chat_server(script) as server:
        with pytest.raises(ServiceError, match=r"no such key: \*\*\*") as caught:
            go(tmp_path / "run", server, "plan.llm.concurrency=2")
        assert KEY not in str(caught.value)
        asked = len(server.words)
        assert asked <= 6  # four answers, and what two threads had begun: the rest was not asked
        server.script = honest
        run = go(tmp_path / "run", server)
        assert len(server.words) == asked + 6
    assert len({request.prompt for request in planned(run)}) == 10
    assert KEY.encode() not in written(tmp_path)


def test_how_the_server_is_asked_may_change_under_a_run(tmp_path):
    with chat_server(honest) as server:
        run = go(tmp_path / "run", server)
        before = planned(run)
        go(tmp_path / "run", server, "plan.llm.concurrency=1")
    assert planned(run) == before
    assert len(server.words) == 10


def test_a_password_in_a_recipe_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(RecipeError, match="MILONGA_LLM_KEY") as caught:
        parse_recipe(RECIPE, "fake.toml", ["plan.perturber=llm:x@http://me:hunter2@host/v1"])
    assert "hunter2" not in str(caught.value)


def test_other_names_are_told_what_there_is():
    assert registry.perturber("rules").name == "rules"
    with pytest.raises(RecipeError, match=r"choose rules or llm:MODEL@URL"):
        registry.perturber("gpt")
