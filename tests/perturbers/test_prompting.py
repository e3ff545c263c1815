"""Answers of a language model: the list is found whatever stands around it, and what will not do is named."""

import pytest
from five_captions import CAPTION, GOOD, NUMBERED
from hypothesis import given
from hypothesis import strategies as st

from milonga.perturbers.prompting import parse_captions, request, usable_captions
from milonga.perturbers.rules import most_difference


@pytest.mark.parametrize(
    "answer",
    [
        "\n".join(GOOD),
        "\n\n".join(GOOD),
        NUMBERED,
        "\n".join(f"{n}) {text}" for n, text in enumerate(GOOD, 1)),
        "\n".join(f"({n}) {text}" for n, text in enumerate(GOOD, 1)),
        "\n".join(f"- {text}" for text in GOOD),
        "\n".join(f"  • {text}" for text in GOOD),
        "\n".join(f'{n}. "{text}"' for n, text in enumerate(GOOD, 1)),
        "\n".join(f"{n}. **{text}**" for n, text in enumerate(GOOD, 1)),
        "\n".join(f"**{n}.** “{text}”" for n, text in enumerate(GOOD, 1)),
        "\n".join(f"Caption {n}: {text}" for n, text in enumerate(GOOD, 1)),
        " ".join(f"{n}. {text}" for n, text in enumerate(GOOD, 1)),
        "Sure! Here they are:\n\n" + NUMBERED + "\n\nShall I write more?",
        "Here are five captions:\n" + "\n".join(GOOD),
        "Of course.\n\n" + "\n".join(GOOD) + "\n\nI hope that this helps.",
        "```\n" + "\n".join(GOOD) + "\n```",
        "<think>\n1. is this a list?\n</think>\n" + "\n".join(GOOD),
        '```json\n["' + '", "'.join(GOOD) + '"]\n```',
    ],
)
def test_the_list_is_found(answer):
    assert [text.rstrip(".") for text in parse_captions(answer, 5)] == GOOD
    assert len(usable_captions(answer, CAPTION, 5, temporal=True)[0]) == 5


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("", "no list of 5 captions in ''"),
        ("I am sorry, but I cannot help with that.", "no list of 5 captions in 'I am sorry"),
        ("\n".join(GOOD[:4]), "no list"),
        (NUMBERED.rpartition("\n")[0], "4 usable captions instead of 5"),
        (NUMBERED.replace(GOOD[4], GOOD[0].upper()), "comes twice"),
        (NUMBERED.replace(GOOD[4], "a KETTLE whistles then a door slams shut!"), "is the caption itself"),
        (NUMBERED.replace(GOOD[4], "Rain" + " rain" * 12), "has 13 words, the caption 8"),
        (NUMBERED.replace(GOOD[4], "Noise"), "has 1 words"),
        (NUMBERED.replace(GOOD[4], "A door slams shut after a kettle whistles"), "same events in the same order"),
        (NUMBERED.replace(GOOD[4], "A kettle whistling followed by a door slamming shut"), "same events"),
        (NUMBERED.replace(GOOD[4], "@@ ## 77 \ufffd\ufffd 12 ++ %%"), "is no caption"),
        (NUMBERED.replace(GOOD[4], "A kettle\x00 whistles and a dog barks"), "is no caption"),
        (NUMBERED.replace(GOOD[4], "A kettle \ud800 whistles and a dog barks"), "is no caption"),
        (NUMBERED.replace(GOOD[4], "Чайник свистит и дверь громко хлопает"), "is no caption"),
    ],
)
def test_what_will_not_do_is_named_in_one_line(answer, problem):
    captions, said = usable_captions(answer, CAPTION, 5, temporal=True)
    assert captions == []
    assert problem in said
    assert "\n" not in said
    assert said.isprintable()
    said.encode()


def test_events_of_one_moment_have_no_order():
    answer = "1. Thunder rumbles while rain falls\n2. Hail falls while thunder rumbles"
    captions, problem = usable_captions(answer, "Rain falls while thunder rumbles", 2, temporal=False)
    assert captions == []
    assert "tells the same events" in problem
    assert not problem.endswith("order")


def test_more_than_asked_makes_up_for_one_that_will_not_do():
    six = [GOOD[0], CAPTION, *GOOD[1:]]
    answer = "\n".join(f"{n}. {text}" for n, text in enumerate(six, 1))
    assert usable_captions(answer, CAPTION, 5, temporal=True) == (GOOD, "")


@given(st.text(max_size=400), st.integers(1, 6), st.booleans())
def test_garbage_is_refused_and_never_crashes(answer, count, temporal):
    captions, problem = usable_captions(answer, CAPTION, count, temporal)
    assert bool(captions) != bool(problem)
    assert len(captions) in (0, count)


def test_every_requirement_of_the_paper_is_asked_for():
    plain, ordered = request(CAPTION, 5, temporal=False), request(CAPTION, 5, temporal=True)
    assert CAPTION in plain
    assert "5 other captions" in plain
    for wanted in ("near", "wrong in part", "Keep some", f"{8 - most_difference(CAPTION)} to 12 words", "own"):
        assert wanted in plain
    assert "another order" in ordered
    assert "another order" not in plain
    assert request(CAPTION, 5, temporal=False, problem="") == plain
    assert request(CAPTION, 5, temporal=False, problem="it is short").endswith("it is short.")
