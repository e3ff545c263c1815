"""Rubric: a caption as yes/no questions about a clip, answered by a tagger or by an audio model on a server.

Is each sound there, does the earlier of two begin first, is there nothing else? The score is the mean probability of
the right answer. Of a model it is p = σ(log p_yes − log p_no) from the log-probabilities of its first token (Kuan et
al. 2026, AQAScore), else the share of yes among sampled answers. Whoever answers is calibrated first on clips whose
captions are known to be true or false, and refused where the two cannot be told apart.
"""

import csv
import math
from base64 import b64encode
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from milonga.core.audio import read_audio
from milonga.core.config import Asking
from milonga.core.errors import CheckpointError, DataError, MilongaError, ServiceError, brief
from milonga.core.ids import content_id
from milonga.core.records import Clip
from milonga.perturbers.endpoint import Endpoint, Reply
from milonga.perturbers.llm import LanguageModel
from milonga.perturbers.questions import Question, QuestionWriter, questions_of
from milonga.scorers.events import Diagnosis, EventScorer

LEAST_ACCURACY = 0.75  # of telling a clip's caption from another clip's; below it an answerer is refused
CALIBRATION = 24  # clips of the small world for calibration, each with a true and a false caption
LEAST_CLIPS = 4  # with different captions, of a calibration of one's own
SAMPLES = 8  # answers that are sampled where a server gives no log-probabilities
YES, NO = ("yes", "y", "true"), ("no", "n", "false")
Calibration = tuple[Sequence[Clip], Sequence[str]]  # clips and their captions, all different


def calibrate(
    name: str, score: Callable[[Sequence[Clip], Sequence[str]], np.ndarray], calibration: Calibration | None,
    refusal: type[MilongaError],
) -> float:  # fmt: skip
    """The share of calibration clips (else of the small world's) that score higher with their own caption than with
    another clip's, of those that have both scores. Raises `refusal` below LEAST_ACCURACY or LEAST_CLIPS."""
    clips, texts = calibration or world_clips(CALIBRATION)
    shift = len(texts) // 2
    true, false = score(clips, texts), score(clips, [*texts[shift:], *texts[:shift]])
    known = np.isfinite(true) & np.isfinite(false)
    accuracy = float((0.5 + 0.5 * np.sign(true[known] - false[known])).mean()) if known.any() else 0.0
    if accuracy < LEAST_ACCURACY or known.sum() < LEAST_CLIPS:
        raise refusal(
            f"{name} prefers a clip's own caption to another's for {accuracy:.0%} of {int(known.sum())} calibration "
            f"clips, and {LEAST_ACCURACY:.0%} of {LEAST_CLIPS} or more are needed: choose one that hears, or calibrate "
            "it on clips that it should know (+calibration=CLIPS.csv)"
        )
    return accuracy


class TaggerRubric(EventScorer):
    """A `Scorer`: the mean probability of the right answers to a caption's questions, by a tagger.

    `rubric:TAGGER` is its name. Before the first score the tagger is calibrated on `calibration` (else clips of the
    small world); CheckpointError where it cannot tell true captions from false ones.
    """

    calibration: Calibration | None = None
    accuracy = math.nan

    def score(self, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
        """The score of each clip with its text, shape (N,), in 0…1; NaN where no sound of the text can be read."""
        self._calibrate()
        return super().score(clips, texts)

    def diagnose(self, clips: Sequence[Clip], text: str) -> list[Diagnosis]:
        """As that of `EventScorer`, of a tagger that was calibrated."""
        self._calibrate()
        return super().diagnose(clips, text)

    def wave_rewards(self, waves: Tensor, rate: int, texts: Sequence[str]) -> Tensor:
        """As those of `EventScorer`, of a tagger that was calibrated."""
        self._calibrate()
        return super().wave_rewards(waves, rate, texts)

    def combine(self, answers: Tensor) -> float:
        """The mean of the probabilities (Q,), given as logarithms."""
        return float(answers.exp().mean())

    def _calibrate(self) -> None:
        if math.isnan(self.accuracy):
            self.accuracy = calibrate(self.name, super().score, self.calibration, CheckpointError)


class RubricScorer(LanguageModel):
    """A `Scorer`: the mean probability of the right answers to a caption's questions, by an audio model on a server.

    `rubric:MODEL@URL` is its name. Every answer is stored under the model, the question and the audio, so scores are
    repeatable and an interrupted evaluation resumes. A clip with a question that the model will not answer is NaN.
    Questions follow rules, or come from `writer`. Before the first score the model is calibrated on `calibration` (else
    clips of the small world): ServiceError where it cannot tell true captions from false ones.
    """

    kind, unit = "rubric", "questions"

    def __init__(
        self, endpoint: Endpoint, cache: Path, asking: Asking | None = None, pause: float = 1.0,
        calibration: Calibration | None = None, writer: QuestionWriter | None = None,
    ) -> None:  # fmt: skip
        super().__init__(endpoint, cache, asking, pause)
        self.calibration, self.writer, self._sampled = calibration, writer, False
        self.accuracy = math.nan
        if writer:
            self.name += f"+items={writer.name}"

    def score(self, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
        """The score of each clip with its text, shape (N,), in 0…1; NaN without a word or an answer.

        Raises ServiceError where the server refuses key or model or stops answering, and below LEAST_ACCURACY.
        """
        if math.isnan(self.accuracy) and len(clips):
            self.accuracy = calibrate(self.name, self._scores, self.calibration, ServiceError)
        return self._scores(clips, texts)

    def spent(self) -> dict[str, Any]:
        """Requests, tokens and cost of the answers, and under `items` those of a writer of questions."""
        return super().spent() | ({"items": self.writer.spent()} if self.writer else {})

    def spent_text(self) -> str:
        """The same in a line, with the accuracy of calibration."""
        writer = f"; {self.writer.spent_text()}" if self.writer else ""
        return f"{super().spent_text()}; {self.accuracy:.0%} right in calibration{writer}"

    def _scores(self, clips: Sequence[Clip], texts: Sequence[str]) -> np.ndarray:
        sounds, unique = [_wav(clip) for clip in clips], list(dict.fromkeys(texts))
        with ThreadPoolExecutor(self.concurrency) as threads:
            write = self.writer.questions if self.writer else questions_of
            rubrics = dict(zip(unique, threads.map(write, unique), strict=True))
            tasks = [(sound, question) for sound, text in zip(sounds, texts, strict=True) for question in rubrics[text]]
            answers = iter(list(threads.map(lambda task: self._right(*task), tasks)))
        rows = [[next(answers) for _ in rubrics[text]] for text in texts]
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
        return self._stored(path, lambda stored: float(stored["yes"]), lambda: self._request(sound, question))

    def _request(self, sound: bytes, question: str) -> tuple[float, dict[str, Any]]:
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
        return reading, request | {"yes": reading, "sampled": self._sampled} | spent


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


def read_calibration(path: Path) -> Calibration:
    """The clips of a CSV with the columns clip (a file beside the table) and caption, one of each caption.

    Raises DataError for a table without them, or with fewer than LEAST_CLIPS captions; AudioError for a bad file.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = {row["caption"]: path.parent / row["clip"] for row in csv.DictReader(file)}
    except (OSError, UnicodeDecodeError, KeyError, TypeError, csv.Error) as error:
        raise DataError(f"{path}: no table with the columns clip and caption ({brief(error)})") from None
    if len(rows) < LEAST_CLIPS:
        raise DataError(f"{path}: {len(rows)} captions, and a calibration needs {LEAST_CLIPS} different ones")
    return [read_audio(file) for file in rows.values()], list(rows)
