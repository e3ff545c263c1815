"""The language-model perturber against a server on loopback that misbehaves in every way such servers do."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from chat_server import chat_server, fails, hangs, says, sends
from five_captions import CAPTION, GOOD, NUMBERED

from milonga.core.config import Asking
from milonga.core.errors import DataError, RecipeError, ServiceError
from milonga.core.records import Prompt
from milonga.perturbers.endpoint import OPENAI, Endpoint, _retry_after
from milonga.perturbers.llm import PATIENCE, LlmPerturber

KEY = "sk-loopback-0123456789-and-much-more-than-sixty-characters-in-all-of-it"
PROMPT = Prompt.of(CAPTION, "test")


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MILONGA_LLM_KEY", KEY)


def perturber(server, cache, **asking):
    return LlmPerturber(Endpoint("tester", server.url), cache, Asking(**({"timeout": 5} | asking)), pause=0.01)


def ask(one, prompt=PROMPT, temporal=True):
    return one.perturb(prompt, 5, temporal=temporal, seed=1)


@pytest.mark.slow
def test_five_captions_for_one_request(tmp_path):
    with chat_server([says(NUMBERED)]) as server:
        assert ask(perturber(server, tmp_path)) == GOOD
    assert len(server.words) == 1
    assert PROMPT.text in server.words[0]
    assert server.paths == ["/v1/chat/completions"]
    assert server.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize(
    "bad",
    [
        fails(429, "slow down"),
        fails(500, "oops"),
        fails(503),
        (502, {"Content-Type": "text/html"}, b"<html>bad gateway</html>", 0.0),
        sends(b'{"id": "x", "choices": [{"message": {"content": "1. A do'),
        (200, {"Content-Length": "5000"}, b'{"id": "x", "choices": [', 0.0),
        sends(b""),
        sends(b"[]"),
        sends(b"null"),
        sends(b'{"error": {"message": "upstream"}}'),
        sends(b'{"choices": []}'),
        sends(b'{"choices": [{"message": {"content": 7}}]}'),
        sends(b"\xff\xfe\x00"),
        says(None),
        says("\n".join(NUMBERED.splitlines()[:4])),
        says(NUMBERED.replace(GOOD[4], GOOD[0])),
        says(NUMBERED, finish="length"),
        says(None, refusal="I cannot do that."),
        says("word salad 12 ## " * 500),
    ],
)
def test_one_bad_answer_is_asked_again(tmp_path, bad):
    with chat_server([bad, says(f"Here they are:\n{NUMBERED}\nEnjoy!")]) as server:
        one = perturber(server, tmp_path, timeout=1)
        assert ask(one) == GOOD
    assert len(server.words) == one.spent()["requests"] == 2


def test_a_server_that_hangs_is_given_up_and_asked_again(tmp_path):
    with chat_server([hangs(4), says(NUMBERED)]) as server:
        began = time.monotonic()
        assert ask(perturber(server, tmp_path, timeout=0.3)) == GOOD
        assert time.monotonic() - began < 3.5  # a busy machine takes its time, too
    assert len(server.words) == 2


def test_retry_after_is_obeyed(tmp_path):
    with chat_server([fails(429, Retry_After="0.4"), says(NUMBERED)]) as server:
        assert ask(perturber(server, tmp_path)) == GOOD
    assert 0.39 < server.times[1] - server.times[0] < 2


def test_retry_after_as_seconds_date_or_nonsense():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < (_retry_after({"retry-after": soon}) or 0) <= 30
    assert _retry_after({"retry-after": "7"}) == 7
    assert _retry_after({"retry-after": "999999"}) == 120
    assert _retry_after({"retry-after": "-3"}) == 0
    assert [_retry_after({"retry-after": said}) for said in ("", "soon", "nan")] == [None] * 3
    assert _retry_after({}) is None


@pytest.mark.slow
def test_pauses_grow(tmp_path):
    with chat_server([fails(500)] * 4 + [says(NUMBERED)]) as server:
        one = LlmPerturber(Endpoint("tester", server.url), tmp_path, Asking(timeout=5), pause=0.1)
        assert ask(one) == GOOD
    pauses = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert pauses[0] >= 0.05
    assert pauses[3] >= 0.4  # 0.1 · 2³ · (0.5 … 1.5)


def test_the_model_is_told_what_was_wrong(tmp_path):
    with chat_server([says(NUMBERED.rpartition("\n")[0]), says(NUMBERED)]) as server:
        ask(perturber(server, tmp_path))
    assert "4 usable captions instead of 5" not in server.words[0]
    assert server.words[1].startswith(server.words[0])
    assert "4 usable captions instead of 5" in server.words[1]


def test_a_caption_whose_answers_never_do_is_refused_with_the_reason(tmp_path):
    with chat_server([says("No.")]) as server:
        one = perturber(server, tmp_path, attempts=3)
        for _ in range(PATIENCE + 1):  # a server that answers is not gone, however bad its answers are
            with pytest.raises(DataError, match=r"refused after 3 attempts: no list of 5 captions in 'No\.'"):
                ask(one)
    assert len(server.words) == 3 * (PATIENCE + 1)
    assert not list(tmp_path.iterdir())


def test_a_filtered_caption_is_refused_at_once(tmp_path):
    with (
        chat_server([fails(400, "filtered", code="content_filter")]) as server,
        pytest.raises(DataError, match="filter refused the caption"),
    ):
        ask(perturber(server, tmp_path))
    assert len(server.words) == 1


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (fails(401, "bad key"), "key is missing or refused: HTTP 401 'bad key'; set MILONGA_LLM_KEY"),
        (fails(404, "no such model"), "HTTP 404 'no such model'; check plan.perturber"),
        (fails(400, "bad request"), "check plan.perturber"),
        (fails(429, "pay first", code="insufficient_quota"), "no quota left"),
    ],
)
def test_what_no_caption_would_get_over_stops_the_run_at_once(tmp_path, act, said):
    with chat_server([act]) as server, pytest.raises(ServiceError) as caught:
        ask(perturber(server, tmp_path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(server.words) == 1


def test_a_server_that_is_gone_stops_the_run_after_a_few_captions(tmp_path):
    with chat_server([fails(500)]) as server:
        one = perturber(server, tmp_path, attempts=2)
        for _ in range(PATIENCE - 1):
            with pytest.raises(DataError, match="refused after 2 attempts: HTTP 500"):
                ask(one)
        with pytest.raises(ServiceError, match="3 captions in a row without an answer"):
            ask(one)
    with pytest.raises(DataError, match="no connection"):
        ask(perturber(server, tmp_path, attempts=1))  # nobody listens there any more


def test_an_answer_is_asked_and_paid_for_once(tmp_path):
    asking = {"price_in": 2.0, "price_out": 10.0}
    with chat_server([says("no"), says(NUMBERED)]) as server:
        first, second = perturber(server, tmp_path, **asking), perturber(server, tmp_path, **asking)
        assert ask(first) == ask(second) == GOOD
    assert len(server.words) == 2
    assert first.spent() | {"perturber": ""} == {
        "perturber": "",
        "requests": 2,
        "tokens_in": 200,
        "tokens_out": 40,
        "cached": 0,
        "cached_tokens_in": 0,
        "cached_tokens_out": 0,
        "cost": pytest.approx((200 * 2 + 40 * 10) / 1e6),
    }
    later = second.spent()
    assert (later["requests"], later["cached"], later["cached_tokens_in"], later["cost"]) == (0, 1, 100, 0)


def test_the_cache_knows_model_server_question_and_count(tmp_path):
    def script(words, place):
        return says("\n".join(NUMBERED.splitlines()[:3]) if "Write 3" in words else NUMBERED)

    with chat_server(script) as server, chat_server(script) as other:
        one = perturber(server, tmp_path)
        ask(one)
        ask(one, temporal=False)
        assert len(one.perturb(PROMPT, 3, temporal=True, seed=1)) == 3
        assert one.perturb(PROMPT, 0, temporal=True, seed=1) == []
        ask(LlmPerturber(Endpoint("another", server.url), tmp_path))
        ask(perturber(other, tmp_path))
        one.perturb(PROMPT, 5, temporal=True, seed=99)  # the seed is no part of the question
    assert (len(server.words), len(other.words)) == (4, 1)
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("damage", [b"", b"{", b'{"answer": 1}', b"\xff\xff"])
def test_a_damaged_answer_in_the_cache_is_asked_for_again(tmp_path, damage):
    with chat_server([says(NUMBERED)]) as server:
        ask(perturber(server, tmp_path))
        (file,) = tmp_path.iterdir()
        file.write_bytes(damage)
        assert ask(perturber(server, tmp_path)) == GOOD
        assert ask(perturber(server, tmp_path)) == GOOD
    assert len(server.words) == 2


def test_a_kept_answer_is_checked_again(tmp_path):
    with chat_server([says(NUMBERED)]) as server:
        ask(perturber(server, tmp_path))
        (file,) = tmp_path.iterdir()
        file.write_text(json.dumps(json.loads(file.read_text()) | {"answer": "1. Nothing"}))
        assert ask(perturber(server, tmp_path)) == GOOD


def test_an_answer_of_the_first_edition_is_read(tmp_path):
    with chat_server([says(NUMBERED)]) as server:
        ask(perturber(server, tmp_path))
        (file,) = tmp_path.iterdir()
        answer = json.loads(file.read_text())
        file.write_text(json.dumps({"asked": answer.pop("request"), **answer}))
        assert ask(perturber(server, tmp_path)) == GOOD
    assert len(server.words) == 1


def test_threads_share_a_perturber_and_ask_the_same_question_once(tmp_path):
    def script(words, place):
        return 200, {}, says(NUMBERED)[2], 0.05

    with chat_server(script) as server, ThreadPoolExecutor(8) as pool:
        one = perturber(server, tmp_path)
        assert list(pool.map(lambda _: ask(one), range(16))) == [GOOD] * 16
    assert len(server.words) == 1
    assert one.spent()["cached"] == 15


def test_stop_ends_a_wait(tmp_path):
    with chat_server([fails(429, Retry_After="60")]) as server, ThreadPoolExecutor(1) as pool:
        one = perturber(server, tmp_path)
        waiting = pool.submit(ask, one)
        while not server.words:
            time.sleep(0.01)
        one.stop()
        with pytest.raises(ServiceError, match="stopped"):
            waiting.result(timeout=5)


@pytest.mark.parametrize(
    "act",
    [
        fails(401, f"Incorrect API key provided: {KEY}"),
        fails(500, f"{'x' * 30} {KEY}"),
        says(f"Your key is {KEY}"),
        says(None, refusal=f"{KEY} may not do that"),
        says("\n".join(f"{n}. A kettle {KEY} number {n}" for n in range(1, 6))),
    ],
)
def test_a_server_that_repeats_the_key_gets_it_into_no_message_and_no_file(tmp_path, act):
    said = ""
    with chat_server([act]) as server:
        try:
            said = repr(ask(perturber(server, tmp_path, attempts=2)))
        except (DataError, ServiceError) as error:
            said = f"{error!r} {error.__cause__!r}"
    assert len(server.words) >= 1
    assert KEY[:20] not in said + "".join(file.read_text() for file in tmp_path.iterdir())


def test_names():
    assert Endpoint.of("llm:gpt-4o") == Endpoint("gpt-4o", OPENAI)
    assert Endpoint.of("llm:llama3:8b@http://127.0.0.1:11434/v1/") == Endpoint("llama3:8b", "http://127.0.0.1:11434/v1")
    assert Endpoint.of("llm:@cf/meta/x@https://host/v1") == Endpoint("@cf/meta/x", "https://host/v1")


@pytest.mark.parametrize(
    "name",
    [
        "llm:",
        "llm:a b",
        "llm:x@https://me:hunter2@host/v1",
        "llm:x@https://host/v1?key=hunter2",
        "llm:x@https://[hunter2",
        "llm:x@me:hunter2@host:80",
    ],
)
def test_a_name_that_cannot_be_used_is_told_without_its_secrets(name):
    with pytest.raises(RecipeError, match=r"plan\.perturber") as caught:
        Endpoint.of(name)
    assert "hunter2" not in str(caught.value)


def test_openais_key_goes_to_openai_alone():
    both = {"OPENAI_API_KEY": "theirs", "MILONGA_LLM_KEY": " ours\n"}
    assert Endpoint("m").key({"OPENAI_API_KEY": "theirs"}) == "theirs"
    assert Endpoint("m").key(both) == "ours"
    assert Endpoint("m", "http://other/v1").key({"OPENAI_API_KEY": "theirs"}) == ""
    with pytest.raises(RecipeError) as caught:
        Endpoint("m").key({"MILONGA_LLM_KEY": "se\ncret"})
    assert "cret" not in str(caught.value).replace("secret", "")


def test_without_the_client_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(RecipeError, match=r"pip install 'milonga\[llm\]'"):
        LlmPerturber(Endpoint("m"), tmp_path)
