"""The words by which the reader recognises a sound in human captions.

`needs` lists alternatives: "car|vehicle & honk|beep" requires one word of each set, in any order and inflection, and
"thunder" requires nothing else. `also` lists words that may occur beside them without making it another sound. A
segment is a class when its words meet one need of that class and every word is in its needs, in `also` or in `FILLERS`.
So "a man laughs" or "a train horn" is not a sound of this world: precision comes before recall.
"""

from dataclasses import dataclass
from functools import cache

from milonga.nano.lexicon import CLASSES, participle, third_person

_FILLERS = """
a an the some several multiple few many numerous it its his her their there and
is are be being was can heard audible occur occurs occurring present ongoing continues continue continuing
begins begin beginning starts start starting sound sounds noise noises made making make makes
of in on at to by from into onto through up down off out along around against
very loud loudly soft softly quiet quietly steady steadily continuous continuously continually constant constantly
repeatedly repeated rapid rapidly quick quickly fast slow slowly nearby close near distance distant far away
background foreground faint faintly muffled light lightly heavy heavily strong strongly hard brief briefly
gentle gently calm calmly excitedly aggressively enthusiastically rhythmically rhythmic smoothly clearly
consistently consistent intermittently occasionally occasional outside outdoors inside indoors low lowly
small large big old single one two three four five six seven eight nine ten once twice times time series
"""
FILLERS = frozenset(_FILLERS.split())

_IRREGULAR = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "spoke": "speak",
    "rang": "ring",
    "ran": "run",
    "blew": "blow",
    "blown": "blow",
    "ticktocks": "ticktock",
}


@dataclass(frozen=True)
class Known:
    """The words of one class: alternatives of word sets that must all be met, and all words that may occur."""

    needs: tuple[tuple[frozenset[str], ...], ...]
    allowed: frozenset[str]


def _known(*needs: str, also: str = "") -> Known:
    parsed = tuple(tuple(frozenset(part.strip().split("|")) for part in need.split("&")) for need in needs)
    return Known(parsed, frozenset(also.split()).union(*(part for need in parsed for part in need)))


_SPEECH = "speak|talk|voice|speech|converse|narrate"
_SPEAKER = "adult older younger elderly give language foreign microphone"

KNOWN: dict[str, Known] = {
    "Man speaking": _known(f"man|male|guy & {_SPEECH}", also=f"{_SPEAKER} young deep"),
    "Woman speaking": _known(f"woman|female|lady & {_SPEECH}", also=f"{_SPEAKER} young"),
    "Child speaking": _known(f"child|kid|boy|girl & {_SPEECH}", also="young little male female group microphone"),
    "Dog": _known("dog|puppy|canine & bark|yap|woof", "bark|yap|woof", also="young"),
    "Cat": _known("cat|kitten|feline & meow|mew", "meow|mew"),
    "Bird": _known("bird|songbird & chirp|sing|tweet|call|song", "birdsong|birdcall|tweet", also="wild tree"),
    "Rooster": _known("rooster|cockerel & crow|call|cry"),
    "Frog": _known("frog|toad|bullfrog & croak|ribbit", "croak|ribbit"),
    "Rain": _known(
        "rain|raindrop|rainfall|downpour",
        also="fall pour patter hit come drop roof ground surface window pavement tin metal hard ocean",
    ),
    "Thunder": _known("thunder|thunderclap", also="rumble roar crack roll boom clap crash clatter strike sky"),
    "Wind": _known("wind|breeze", also="blow howl gust whistle whoosh microphone tree"),
    "Water": _known(
        "water|stream|river|creek|brook & run|flow|trickle|gurgle|splash|pour|rush",
        "faucet & run",
        also="faucet tap sink tub bathtub rock",
    ),
    "Waves": _known("wave|surf", "ocean|sea & roar|crash", also="roll break shore beach ocean sea water lap rock"),
    "Engine": _known(
        "engine|motor",
        "car|vehicle|automobile|truck & idle|rev",
        also="run hum rumble work operate smooth medium large vibrate car vehicle automobile truck diesel idly",
    ),
    "Car horn": _known(
        "car|vehicle|automobile & horn",
        "horn & honk|beep|toot",
        "car|vehicle|automobile & honk|beep",
        also="blow blare sound trigger",
    ),
    "Siren": _known(
        "siren",
        also="wail blare sound go ring trigger blow whale scream pass approach"
        " emergency police ambulance fire truck engine vehicle car",
    ),
    "Train": _known(
        "train|locomotive",
        also="pass run move approach go rumble clatter travel roll chug clack track rail railroad railway speed",
    ),
    "Helicopter": _known(
        "helicopter|chopper|rotor",
        also="blade fly hover pass spin whir chop run hum engine overhead propeller rotate operate approach",
    ),
    "Bell": _known("bell", also="church ring toll chime clang ding dong strike"),
    "Telephone": _known("telephone|phone & ring|ringtone|go", also="bell go"),
    "Clock": _known("clock & tick|ticktock|tock", also="grandfather wall antique"),
    "Keyboard": _known(
        "keyboard|computer & type|click|clack|clatter|tap|key|press",
        "type",
        also="someone person people finger key man woman",
    ),
    "Knock": _known("knock", "door & tap", also="someone person door wooden wood"),
    "Footsteps": _known(
        "footstep|footfall",
        "someone|person|man|woman|people & walk",
        "walk",
        also="tap approach echo floor wooden wood hard surface gravel stair pavement someone person",
    ),
    "Gunshot": _known(
        "gunshot|gunfire",
        "gun|rifle|pistol & fire|shoot|shot|go|sound",
        "shot & fire|ring",
        also="sound ring gun shot fire",
    ),
    "Applause": _known(
        "applause", "audience|crowd|people & applaud|clap", also="round give hand group crowd audience people"
    ),
}


@cache
def lemmas() -> dict[str, str]:
    """A map from every form of every known word to its dictionary form: "barking", "barks" and "barked" to "bark"."""
    forms = dict(_IRREGULAR)
    for word in sorted(frozenset[str]().union(*(KNOWN[label].allowed for label in CLASSES))):
        past = participle(word).removesuffix("ing") + "ed"
        for form in (word, word + "s", third_person(word), participle(word), past):
            forms.setdefault(form, word)
    return forms
