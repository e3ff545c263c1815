"""A caption and an answer that serves: five wrong captions, as a language model gives them."""

CAPTION = "A kettle whistles then a door slams shut"
GOOD = [
    "A door slams shut, then a kettle whistles",
    "A whistle blows and then a window slams shut",
    "A kettle boils before a drawer closes",
    "A door creaks open after a kettle whistles",
    "A kettle whistles, followed by breaking glass",
]
NUMBERED = "\n".join(f"{n}. {text}" for n, text in enumerate(GOOD, 1))
