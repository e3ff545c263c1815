"""The rubric scorer: questions of a caption, answered by a tagger or by an audio model whose server misbehaves."""

import io
import json
import math
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from tests.support.chat_server import chat_server, fails, hangs, says, sends

from milonga.core.audio import write_audio
from milonga.core.config import Asking
from milonga.core.errors import CheckpointError, DataError, RecipeError, ServiceError
from milonga.core.records import Clip
from milonga.perturbers.endpoint import Endpoint
from milonga.perturbers.questions import EXTRA, Question, QuestionWriter, questions_of
from milonga.scorers.load import fingerprint, rubric_scorer, scorer, tagger_of
from milonga.scorers.rubric import SAMPLES, RubricScorer, world_clips

# Clips by their level: what a model "hears" is the caption of the nearest level.
LEVELS = {0.1: "a dog barks", 0.3: "rain falls", 0.5: "a bell rings", 0.7: "a car passes"}
CLIPS = [Clip(np.full(1600, level), 16000) for level in LEVELS]
TEXTS = list(LEVELS.values())


def content(parts: Any) -> tuple[str, str]:
    """The question of a request, and what its clip is of."""
    samples, _ = soundfile.read(io.BytesIO(b64decode(parts[1]["input_audio"]["data"])))
    return parts[0]["text"], LEVELS[min(LEVELS, key=lambda level: abs(level - np.abs(samples).max()))]


def truth(parts: Any) -> float:
    """The probability of yes of a model that hears."""
    question, sound = content(parts)
    return 0.05 if EXTRA in question else (0.9 if sound in question else 0.1)


def by_logprobs(yes: float) -> Any:
    tokens = [{"token": " Yes", "logprob": math.log(yes), "bytes": None},
              {"token": "no", "logprob": math.log(1 - yes), "bytes": None}]  # fmt: skip
    first = tokens[yes < 0.5] | {"top_logprobs": tokens}
    body = json.loads(says("Yes")[2])
    body["choices"][0]["logprobs"] = {"content": [first]}
    body["choices"][0]["finish_reason"] = "length"
    return sends(json.dumps(body).encode())


def rubric(server: Any, cache: Path, **more: Any) -> RubricScorer:
    settings: dict[str, Any] = {"calibration": (CLIPS, TEXTS)} | more
    return RubricScorer(Endpoint("ears", server.url), cache, Asking(timeout=5, attempts=3), pause=0.01, **settings)


def test_a_caption_becomes_questions_of_presence_order_and_what_is_not_named():
    questions = questions_of("A dog barks then a bell rings")
    texts = [question.text for question in questions]
    assert sum("Can you hear" in text for text in texts) == 2
    assert sum("begin before" in text for text in texts) == 1
    assert texts[2].index("dog") < texts[2].index("bell")
    assert questions[-1].yes is False
    assert EXTRA in questions[-1].text
    assert all(question.yes for question in questions[:-1])
    assert questions_of("...") == []
    assert questions_of("rain falls")[0] == Question("Can you hear this: rain falls?", True)


def test_probabilities_come_from_the_first_tokens_and_are_stored(tmp_path: Path):
    with chat_server(lambda parts, place: by_logprobs(truth(parts))) as server:
        judge = rubric(server, tmp_path)
        scores = judge.score(CLIPS[:2], ["a dog barks", "a bell rings"])
        np.testing.assert_allclose(scores, [(0.9 + 0.95) / 2, (0.1 + 0.95) / 2], atol=1e-6)
        assert judge.accuracy == 1.0
        asked = len(server.words)
        again = rubric(server, tmp_path)
        np.testing.assert_array_equal(again.score(CLIPS[:2], ["a dog barks", "a bell rings"]), scores)
        assert len(server.words) == asked  # everything is in the cache
        assert again.spent()["cached"] > 0
        assert judge.spent()["tokens_in"] == 100 * asked
    assert judge.name == f"rubric:ears@{server.url}"


@pytest.mark.slow
@pytest.mark.parametrize("refused", [False, True], ids=["none given", "refused by name"])
def test_without_log_probabilities_answers_are_sampled(tmp_path: Path, refused: bool):
    options: list[Any] = []

    def script(parts: Any, place: int) -> Any:
        if refused and place == 0:
            return fails(400, "logprobs are not supported")
        options.append(parts)
        return says("Yes." if truth(parts) > 0.5 else "no, there is none")

    with chat_server(script) as server:
        judge = rubric(server, tmp_path, calibration=(CLIPS, TEXTS))
        judge.asking = Asking(concurrency=1)
        judge.concurrency = 1
        yes = judge.score(CLIPS[:1], ["a dog barks"])
        assert yes == [1.0]
        assert len(options) >= SAMPLES


def test_a_model_that_does_not_hear_is_refused_with_its_accuracy(tmp_path: Path):
    refusal = pytest.raises(ServiceError, match=r"for 50% of 4 calibration clips, and 75% of 4 or more are needed")
    with chat_server(lambda parts, place: by_logprobs(0.6)) as server, refusal:
        rubric(server, tmp_path).score(CLIPS[:1], ["a dog barks"])


def test_a_server_that_stumbles_is_asked_again_and_one_that_babbles_gives_nan(tmp_path: Path):
    seen: dict[str, int] = {}

    def script(parts: Any, place: int) -> Any:
        question, _ = content(parts)
        number = seen[question] = seen.get(question, -1) + 1
        if "gibberish" in question:
            return says("perhaps")
        stumbles = (fails(503), sends(b"not json"), fails(429, retry_after="0"))
        return stumbles[place % 3] if number == 0 else by_logprobs(truth(parts))

    with chat_server(script) as server:
        scores = rubric(server, tmp_path).score(CLIPS[:2], ["a dog barks", "gibberish"])
    assert scores[0] > 0.9
    assert math.isnan(scores[1])


def test_a_wrong_key_and_a_server_that_hangs_stop_with_one_line(tmp_path: Path):
    with chat_server([fails(401, "no such key")]) as server, pytest.raises(ServiceError, match="MILONGA_LLM_KEY"):
        rubric(server, tmp_path / "a").score(CLIPS[:1], ["a dog barks"])
    with chat_server([hangs(2)]) as server:
        judge = RubricScorer(Endpoint("ears", server.url), tmp_path / "b", Asking(timeout=0.2, attempts=1), 0.01,
                             (CLIPS, TEXTS))  # fmt: skip
        with pytest.raises(ServiceError, match="3 questions in a row without an answer"):
            judge.score(CLIPS[:1], ["a dog barks"])


def test_calibration_clips_of_the_world_have_their_own_captions():
    clips, texts = world_clips(4)
    assert len(set(texts)) == len(clips) == 4
    assert all(questions_of(text) for text in texts)


@pytest.mark.slow
def test_a_tagger_answers_the_same_questions_of_nano():
    assert tagger_of("rubric:nano-tagger") == "nano-tagger"
    assert tagger_of("rubric:ears@http://127.0.0.1:1/v1") == ""
    clips, texts = world_clips(6)
    judge = scorer("rubric:nano-tagger-b")
    assert math.isnan(judge.accuracy)
    true, false = judge.score(clips, texts), judge.score(clips, texts[3:] + texts[:3])
    assert (true > false).mean() > 0.8
    assert judge.accuracy > 0.9
    assert fingerprint("rubric:nano-tagger-b") == fingerprint("events:nano-tagger-b")


def test_a_tagger_that_cannot_tell_true_from_false_captions_is_refused(tmp_path: Path):
    clips, texts = world_clips(4)
    for number, clip in enumerate(clips):
        write_audio(tmp_path / f"{number}.wav", clip)
    wrong = [f'{number}.wav,"{text}"' for number, text in enumerate(texts[2:] + texts[:2])]
    (tmp_path / "clips.csv").write_text("\n".join(["clip,caption", *wrong]) + "\n")
    judge = rubric_scorer(f"rubric:nano-tagger-b+calibration={tmp_path}/clips.csv")
    with pytest.raises(CheckpointError, match=r"own caption to another's for \d+% of 4 calibration clips, and 75%"):
        judge.score(clips, texts)
    (tmp_path / "few.csv").write_text("\n".join(["clip,caption", *wrong[:2]]) + "\n")
    with pytest.raises(DataError, match="2 captions, and a calibration needs 4"):
        rubric_scorer(f"rubric:nano-tagger-b+calibration={tmp_path}/few.csv")
    with pytest.raises(DataError, match="no table with the columns clip and caption"):
        rubric_scorer(f"rubric:nano-tagger-b+calibration={tmp_path}/none.csv")
    with pytest.raises(RecipeError, match="a tagger cannot answer free questions"):
        rubric_scorer("rubric:nano-tagger-b+items=llm:x@http://127.0.0.1:1/v1")
    assert tagger_of("rubric:nano-tagger-b+calibration=x.csv") == "nano-tagger-b"


def test_a_language_model_writes_the_questions_from_a_server_that_misbehaves(tmp_path: Path):
    requests: list[str] = []

    def script(parts: Any, place: int) -> Any:
        if not isinstance(parts, str):
            return by_logprobs(truth(parts))
        requests.append(parts)
        caption = next(text for text in (*TEXTS, "babble") if text in parts)
        if caption == "babble":
            return says("Sure! A recording is hard to check.")
        stumbles = (fails(503), says("1. It is loud."), sends(b"not json"))
        if len(requests) <= len(stumbles):
            return stumbles[len(requests) - 1]
        return says(f"1. Can you hear that {caption}?\n2. Is it so that {caption}, once?")

    with chat_server(script) as server:
        asking = Asking(timeout=5, attempts=4, concurrency=1, price_in=1.0, price_out=1.0)
        writer = QuestionWriter(Endpoint("pen", server.url), tmp_path / "llm", asking, pause=0.01)
        judge = RubricScorer(Endpoint("ears", server.url), tmp_path / "rubric", asking, 0.01, (CLIPS, TEXTS), writer)
        scores = judge.score(CLIPS[:2], ["a dog barks", "babble"])
        assert scores[0] == pytest.approx((0.9 + 0.9 + 0.95) / 3)
        assert math.isnan(scores[1])
        assert any("is no question of at most" in text for text in requests)  # a bad answer is named to the model
        spent, count = judge.spent(), len(requests)
        assert spent["items"]["requests"] == count
        assert spent["items"]["cost"] == pytest.approx((count - 2) * 120 / 1e6)
        again = QuestionWriter(Endpoint("pen", server.url), tmp_path / "llm", asking, pause=0.01)
        questions = again.questions("a dog barks")
        assert [question.yes for question in questions] == [True, True, False]
        assert len(requests) == count  # from the cache
        assert again.spent()["cached"] == 1
    assert judge.name == f"rubric:ears@{server.url}+items=llm:pen@{server.url}"
