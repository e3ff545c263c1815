"""Rubric: a caption as yes/no questions about a clip, answered by a tagger or by an audio model on a server.

Is each sound there, does the earlier of two begin first, is there nothing else? The score is the mean probability of
the right answer. Of a model it is p = σ(log p_yes − log p_no) from the log-probabilities of its first token (Kuan et
al. 2026, AQAScore), else the share of yes among sampled answers. A model is calibrated first on clips whose captions
are known to be true or false, and refused where it cannot tell them apart.
"""

import math
from base64 import b64encode
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from milonga.core.config import Asking
from milonga.core.errors import DataError, ServiceError, StoreError
from milonga.core.ids import content_id
from milonga.core.records import Clip
from milonga.core.store import read_json, write_json
from milonga.perturbers.endpoint import Endpoint, Reply
from milonga.perturbers.llm import LanguageModel
from milonga.perturbers.phrases import split_phrases, timeline

RUBRIC = "rubric:"
LEAST_ACCURACY = 0.75  # of telling a clip's caption from another clip's; below it a model is refused
CALIBRATION = 24  # clips of the small world that a model is calibrated on, each with a true and a false caption
SAMPLES = 8  # answers that are sampled where a server gives no log-probabilities
EXTRA = "anything else"
YES, NO = ("yes", "y", "true"), ("no", "n", "false")


@dataclass(frozen=True)
class Question:
    """A yes/no question about a clip, and whether yes is the right answer."""

    text: str
    yes: bool


def questions_of(caption: str) -> list[Question]:
    """A caption's questions: one for each sound, for each two that follow each other, and for what it does not name.

    None where the caption has no words.
    """
    phrases = split_phrases(caption)
    if not phrases:
        return []
    parts = list(dict.fromkeys(phrase.text.strip() for phrase in phrases if phrase.text.strip()))
    questions = [Question(f"Can you hear this: {part}?", True) for part in parts]
    moments = [moment.strip() for moment in timeline(phrases)]
    questions += [Question(f"Does “{a}” begin before “{b}”?", True) for a, b in pairwise(moments)]
    return [*questions, Question(f"Is there {EXTRA} that can be clearly heard, beside: {'; '.join(parts)}?", False)]


class RubricScorer(LanguageModel):
    """A `Scorer`: the mean probability of the right answers to a caption's questions, by an audio model on a server.

    `rubric:MODEL@URL` is its name. Every answer is stored under the model, the question and the audio, so scores are
    repeatable and an interrupted evaluation resumes. A clip whose questions the model will not answer is NaN. Before
    the first score the model is calibrated on `calibration`, clips and their captions, at least three different ones
    (else clips of the small world): ServiceError where it prefers a clip's own caption to another's too rarely.
    """

    kind, unit = "rubric", "questions"

    def __init__(
        self, endpoint: Endpoint, cache: Path, asking: Asking | None = None, pause: float = 1.0,
        calibration: tuple[Sequence[Clip], Sequence[str]] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(endpoint, cache, asking, pause)
        self._calibration, self._sampled = calibration, False
        self.accuracy = math.nan

    def score(self, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
        """The score of each clip with its text, shape (N,), in 0…1; NaN without a word or an answer.

        Raises ServiceError where the server refuses key or model or stops answering, and below LEAST_ACCURACY.
        """
        if math.isnan(self.accuracy) and len(clips):
            self.accuracy = self._calibrate()
        return self._scores(clips, texts)

    def _calibrate(self) -> float:
        """The share of calibration clips that score higher with their own caption than with another clip's."""
        clips, texts = self._calibration or world_clips(CALIBRATION)
        shift = len(texts) // 2
        others = [*texts[shift:], *texts[:shift]]
        true, false = self._scores(clips, texts), self._scores(clips, others)
        known = np.isfinite(true) & np.isfinite(false)
        accuracy = float((0.5 + 0.5 * np.sign(true[known] - false[known])).mean()) if known.any() else 0.0
        if accuracy < LEAST_ACCURACY:
            raise ServiceError(
                f"{self.name} prefers a clip's own caption to another's for {accuracy:.0%} of {int(known.sum())} "
                f"calibration clips, and {LEAST_ACCURACY:.0%} are needed: choose a model that hears"
            )
        return accuracy

    def _scores(self, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
        sounds = [_wav(clip) for clip in clips]
        rubrics = [questions_of(text) for text in texts]
        tasks = [(sound, question) for sound, own in zip(sounds, rubrics, strict=True) for question in own]
        with ThreadPoolExecutor(self.concurrency) as threads:
            answers = iter(list(threads.map(lambda task: self._right(*task), tasks)))
        rows = [[next(answers) for _ in own] for own in rubrics]
        return np.array([np.mean(row) if row else np.nan for row in rows], dtype=np.float64)

    def _right(self, sound: bytes, question: Question) -> float:
        """The probability of the right answer; NaN where the model refuses or its answers are none."""
        try:
            yes = self.probability(sound, question.text)
        except DataError:
            return math.nan
        return yes if question.yes else 1 - yes

    def probability(self, sound: bytes, question: str) -> float:
        """The probability of yes to a question about a sound (a WAV file), from the cache or the server.

        Raises DataError where there is no usable answer, ServiceError as `score`.
        """
        key = content_id(self._endpoint.url, self._endpoint.model, question, sha256(sound).hexdigest())
        path = self._cache / f"{key}.json"
        with self._lock:
            busy = self._busy[path.name]
        with busy:
            try:
                stored = read_json(path) if path.exists() else {}
                yes = float(stored["yes"])
            except (StoreError, KeyError, TypeError, ValueError):  # not there, or damaged: it is asked again
                yes = self._request(sound, question, path)
            else:
                self._count(cached=1, cached_tokens_in=stored.get("tokens_in", 0),
                            cached_tokens_out=stored.get("tokens_out", 0))  # fmt: skip
            return yes

    def _request(self, sound: bytes, question: str, path: Path) -> float:
        parts: list[dict[str, Any]] = [
            {"type": "text", "text": f"{question} Listen to the audio and answer with one word, yes or no."},
            {"type": "input_audio", "input_audio": {"data": b64encode(sound).decode(), "format": "wav"}},
        ]
        replies, reading = list[Reply](), math.nan
        if not self._sampled:
            options: dict[str, Any] = {"logprobs": True, "top_logprobs": 20, "max_tokens": 1, "temperature": 0}
            try:
                reading, reply = self._from_server(lambda problem: self._ask(parts, **options), _from_logprobs, 0)
                replies.append(reply)
                self._sampled = math.isnan(reading)
            except DataError as error:
                self._sampled = "logprob" in str(error)
                if not self._sampled:
                    raise
        if self._sampled:
            samples = [self._from_server(lambda problem: self._ask(parts, temperature=1), _from_word, number)
                       for number in range(SAMPLES)]  # fmt: skip
            reading = float(np.mean([answer for answer, _ in samples]))
            replies += [reply for _, reply in samples]
        spent = {"tokens_in": sum(reply.tokens_in for reply in replies),
                 "tokens_out": sum(reply.tokens_out for reply in replies)}  # fmt: skip
        request = {"url": self._endpoint.url, "model": self._endpoint.model, "question": question}
        write_json(path, request | {"yes": reading, "sampled": self._sampled} | spent)
        return reading


def _from_logprobs(reply: Reply) -> tuple[float, str]:
    """p of yes from the first token's log-probabilities; NaN where the server gives none."""
    if not reply.first:
        return math.nan, ""
    sums = [np.logaddexp.reduce([p for token, p in reply.first if _word(token) in words] or [-np.inf])
            for words in (YES, NO)]  # fmt: skip
    if np.isneginf(sums).all():
        return math.nan, f"its first word is neither yes nor no but {reply.first[0][0]!r}"
    return float(1 / (1 + np.exp(np.clip(sums[1] - sums[0], -60, 60)))), ""


def _from_word(reply: Reply) -> tuple[float, str]:
    word = _word(reply.text.split()[0]) if reply.text.split() else ""
    if word not in (*YES, *NO):
        return math.nan, "its answer is neither yes nor no"
    return float(word in YES), ""


def _word(token: str) -> str:
    return token.strip().strip(".,!*\"'").lower()


def _wav(clip: Clip) -> bytes:
    import soundfile

    buffer = BytesIO()
    soundfile.write(buffer, clip.waveform, clip.rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def world_clips(count: int) -> tuple[list[Clip], list[str]]:
    """Rendered clips of the small world and their true captions: always the same ones."""
    from milonga.nano.captions import caption_in
    from milonga.nano.world import draw_counts, draw_scene, render

    rng, clips, texts = np.random.default_rng(0), [], []
    while len(texts) < count:
        scene = draw_scene(rng)
        try:
            text = caption_in("tune", scene, draw_counts(scene, rng), rng)
        except DataError:  # this scene's captions are in other splits
            continue
        clips.append(render(scene, len(texts)).clip)
        texts.append(text)
    return clips, texts
