"""What a language model is asked: the requirements of Table 1 for strategies 2 and 3, in words of our own.

Departures: the number of captions and the length are said in figures, since the answer is checked against them, and a
model that is asked again is told why its last answer would not do.
"""

from milonga.perturbers.rules import most_difference

_CLOSE = "Stay near to the recording and to its caption: a reader sees at once that both speak of similar things."
_ORDER = "Tell the events in another order than the caption does."
_WRONG = "Be wrong in part: say something that does not hold for this recording."
_KEPT = "Keep some of the caption's ideas: a caption about something quite different is of no use."


def instructions(caption: str, count: int, temporal: bool) -> str:
    """The request for `count` wrong captions; `temporal` asks for another order of events too (Table 1, strategy 3)."""
    n = len(caption.split())
    room = most_difference(caption)
    length = f"Be about as long as the caption: {max(1, n - room)} to {n + room} words."
    wanted = [_CLOSE, *([_ORDER] if temporal else []), _WRONG, _KEPT, length]
    return "\n".join(
        (
            f"This is the caption of a sound recording: {caption}",
            "",
            f"Write {count} other captions, no two alike. Every one of them has to meet all of these requirements:",
            *(f"- {one}" for one in wanted),
            "",
            f"A program reads your answer: give the {count} captions, each on a line of its own, and not a word more.",
        )
    )


def again(asked: str, problem: str) -> str:
    """The same request after an answer that would not do."""
    return f"{asked}\n\nYour last answer could not be used: {problem}." if problem else asked
