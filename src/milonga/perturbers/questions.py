"""A caption as yes/no questions about a clip, by rules or by a language model: what a rubric asks.

By rules it is asked whether each sound is there, whether the earlier of two begins first, and whether there is nothing
else. A language model may also ask how often a sound comes, or where. That nothing else is heard is always asked.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from milonga.core.errors import DataError
from milonga.core.ids import content_id
from milonga.perturbers.llm import LanguageModel
from milonga.perturbers.phrases import split_phrases, timeline
from milonga.perturbers.prompting import parse_captions, shortened

EXTRA = "anything else"
MOST_QUESTIONS, LONGEST_QUESTION = 12, 30  # a caption; words in one


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


class QuestionWriter(LanguageModel):
    """A language model that writes a caption's questions; `llm:MODEL@URL` is its name."""

    def questions(self, caption: str) -> list[Question]:
        """The questions that the model writes, to which yes is right, and that for what the caption does not name.

        None where the caption has no words, or the model gives no usable list. Answers are cached. Raises ServiceError
        where the server refuses key or model or stops answering.
        """
        rules = questions_of(caption)
        if not rules:
            return []
        path = self._cache / f"{content_id(self._endpoint.url, self._endpoint.model, _request(caption))}.json"

        def read(stored: dict[str, Any]) -> list[str] | None:
            return _usable(stored["answer"])[0] or None

        def fresh() -> tuple[list[str], dict[str, Any]]:
            texts, reply = self._from_server(
                lambda problem: self._ask(_request(caption, problem)), lambda reply: _usable(reply.text), 0
            )
            request = {"url": self._endpoint.url, "model": self._endpoint.model, "caption": caption}
            return texts, request | {"answer": reply.text, "tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out}

        try:
            texts = self._stored(path, read, fresh)
        except DataError:
            return []
        return [*(Question(text, True) for text in texts), rules[-1]]


def _request(caption: str, problem: str = "") -> str:
    text = (
        f"This is the caption of a sound recording: {caption}\n\n"
        "Write yes/no questions with which a listener who does not see the caption checks that the recording fits it: "
        "one for each sound, one for the order of each two sounds where the caption gives it, and one for what it says "
        "about how often a sound comes or where. Yes must be the right answer to every question for a recording that "
        "fits. Ask for nothing that the caption does not say, and do not ask whether anything else is heard.\n\n"
        "A program reads your answer: give the questions as a numbered list, and not a word more."
    )
    return f"{text}\n\nYour last answer could not be used: {problem}." if problem else text


def _usable(answer: str) -> tuple[list[str], str]:
    """The questions of an answer and "", or none and why."""
    texts = list(dict.fromkeys(parse_captions(answer, 1)))
    if not 1 <= len(texts) <= MOST_QUESTIONS:
        return [], f"1 to {MOST_QUESTIONS} questions are needed, and there are {len(texts)} in {shortened(answer)}"
    for text in texts:
        if not text.endswith("?") or len(text.split()) > LONGEST_QUESTION:
            return [], f"{shortened(text)} is no question of at most {LONGEST_QUESTION} words"
    return texts, ""
