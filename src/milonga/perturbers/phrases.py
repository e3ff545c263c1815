"""A caption as the rule perturber takes it apart: phrases between connectives, their order in time, sounds to insert.

It must handle any English caption, so it needs no understanding of a phrase: only whether the phrase is a clause
("a dog barks") or nominal ("a dog barking"), which decides what may stand after "while" or "followed by".
"""

import re
from dataclasses import dataclass
from itertools import pairwise

# "is shortly followed by" and "right before" are connectives whole, so that nothing of them stays behind in a phrase.
_LINK = re.compile(
    r"\s*,?\s*\b(?:(?:(?:is|are|was|were)\s+)?(?:(?:then|soon|shortly|quickly|closely|immediately)\s+)?(?=followed by)"
    r"|(?:right|just|shortly|immediately)\s+(?=before|after|as\b|while))?"
    r"\b(and then|and finally|then|followed by|before|after|while|as|with|and|over)\b\s*|\s*,\s*",
    re.IGNORECASE,
)
_IDLE = re.compile(r"^(at )?first\b,?\s*|\s+at the same time\b", re.IGNORECASE)  # would be wrong once phrases move
_AUXILIARY_END = re.compile(r"(?:\s*\b(?:is|are|was|were))+$", re.IGNORECASE)
_THEN = ("and then", "and finally", "then", "followed by", "before")
_LOOSE = ("and", "with", "over", ",")
_AUXILIARIES = frozenset(("is", "are", "was", "were", "can", "does", "do", "has", "have"))
_DETERMINERS = frozenset(("a", "an", "the", "some", "several", "his", "her", "its", "their", "of"))

_PRONOUNS = frozenset(("it", "its", "he", "his", "she", "her", "they", "their"))
# The subject of these participles stands before the phrase: "turning off" is no sound by itself.
_BOUND = frozenset(
    ("turning", "starting", "stopping", "slowing", "speeding", "fading", "getting", "growing", "going", "shutting")
)
_ASPECT = frozenset(("start", "begin", "stop", "continue", "keep"))  # "people start talking" is a clause

_PREPOSITIONS = ("in", "on", "by", "from", "with", "at")

_VERB_WORDS = """
speak talk bark yap run idle blow laugh chirp tweet rev hum rustle play splash cry sound buzz hiss click snore
ring flush whistle accelerate pass type start honk gurgle tap beep tick coo fall quack meow scrape cheer occur
rattle bang bleat vibrate stop scream yell sing clap whir squeal thump drill clack murmur crash trickle flow
whimper flap speed go begin breathe squeak burp whoosh sneeze growl spray fry roar sizzle pour operate
approach clang clink chug shout rub screech open close turn drive fly move walk knock hit drop shoot fire
explode croak crow howl rumble boom wail blare chime toll applaud give make continue patter hover echo crack
gust cough sniff call oink neigh moo baa chew slam rip cut saw hammer whine chatter shuffle crinkle crumple
pop toot groan moan hiccup describe converse mumble grind chuckle giggle ride race use work present shift rise
dribble drip purr hoot chop spin transition slow fade decelerate get come shut throttle proceed increase decrease
say belch sputter resume subside sigh drain clank jump skid stutter depart restart return exhale inhale yawn sniffle
gulp strum bounce yell cluck trill caw whisper swish slosh fizzle
"""
_VERBS = frozenset(_VERB_WORDS.split())


@dataclass(frozen=True)
class Sound:
    """A sound to put into a caption: who makes it, as a clause and nominally, its kin, and words that betray it."""

    subject: str
    finite: str
    participle: str
    kin: str
    keys: re.Pattern[str]

    def said(self, clause: bool) -> str:
        """ "a dog barks" or "a dog barking"."""
        return f"{self.subject} {self.finite if clause else self.participle}"


def _sounds(kin: str, *rows: str) -> list[Sound]:
    cells = [row.split("|", 3) for row in rows]
    return [
        Sound(subject, finite, participle, kin, re.compile(rf"\b(?:{keys})", re.IGNORECASE))
        for subject, finite, participle, keys in cells
    ]


SOUNDS: tuple[Sound, ...] = (
    *_sounds(
        "voices",
        "a man|speaks|speaking|man|men|male|guy",
        "a woman|speaks|speaking|wom[ae]n|female|lady|ladies",
        "a child|talks|talking|child|kid|boy|girl|toddler",
        "a crowd|applauds|applauding|applau|clap|crowd|audience|cheer",
    ),
    *_sounds(
        "animals",
        "a dog|barks|barking|dog|bark|pupp|canine",
        "a cat|meows|meowing|cats?\\b|meow|kitten",
        "birds|chirp|chirping|bird|chirp|tweet|pigeon",
        "a rooster|crows|crowing|rooster|crow|cockerel",
        "a frog|croaks|croaking|frog|croak|toad",
    ),
    *_sounds(
        "nature",
        "rain|falls|falling|rain|downpour",
        "thunder|rumbles|rumbling|thunder",
        "the wind|blows|blowing|wind|gust|breeze",
        "water|trickles|trickling|water|stream|river|faucet|splash|trickl",
        "waves|crash|crashing|wave|surf|ocean",
    ),
    *_sounds(
        "vehicles",
        "an engine|idles|idling|engine|motor|idl|rev|vehicle|truck",
        "a car horn|honks|honking|horn|honk",
        "a siren|wails|wailing|siren|ambulance|police",
        "a train|passes by|passing by|train|locomotive|rail",
        "a helicopter|flies overhead|flying overhead|helicopter|chopper|aircraft",
    ),
    *_sounds(
        "things",
        "a bell|rings|ringing|bell|chim",
        "a telephone|rings|ringing|(?:tele)?phones?\\b|ringtone",
        "a clock|ticks|ticking|clock|tick",
        "someone|types on a keyboard|typing on a keyboard|typ(?:e|ing)|keyboard",
        "someone|knocks on a door|knocking on a door|knock|door",
        "footsteps|approach|approaching|footstep|walk|steps",
        "gunshots|ring out|ringing out|gun|shot|shoot|pistol|rifle",
    ),
)


@dataclass(frozen=True)
class Phrase:
    """A piece of a caption and the connective before it ("" for the first, unless the caption begins with one)."""

    link: str
    text: str


def split_phrases(caption: str) -> list[Phrase]:
    """The caption cut at its connectives; an "and", "with" or comma that joins no two sounds does not cut."""
    plain = _IDLE.sub("", caption.strip().rstrip(" .!"))
    cut = _LINK.split(plain)
    links = [""] + [(word or ",").lower() for word in cut[1::2]]
    phrases: list[Phrase] = []
    for link, text in zip(links, cut[0::2], strict=True):
        last = phrases[-1] if phrases else None
        if last and not last.text:
            phrases[-1] = Phrase(link, text)
        elif last and not text.strip():
            continue
        elif last and _is_open(last.text) and link == "followed by":  # "is, with, followed by": the "is" belongs to it
            before = _AUXILIARY_END.sub("", last.text)
            phrases[-1:] = [*split_phrases(f"{last.link} {before}"), Phrase(link, text)]
        elif last and _is_open(last.text):  # "and is then revved" is one doing
            phrases[-1] = Phrase(last.link, f"{last.text} {link} {text}")
        elif last and link in _LOOSE and not (_is_sound(last.text) and _is_sound(text)):
            if link == "," and last.link in ("after", "before", "as", "while") and len(phrases) == 1:
                phrases.append(Phrase(link, text))
            else:
                phrases[-1] = Phrase(last.link, last.text + (", " if link == "," else f" {link} ") + text)
        else:
            phrases.append(Phrase(link, text))
    return [Phrase(phrase.link, lowered(phrase.text)) for phrase in phrases if phrase.text]


def timeline(phrases: list[Phrase]) -> list[str]:
    """The caption's phrases in order of time, those that overlap written together.

    One entry where the caption states no order; empty where it states one that is ambiguous ("a then b after c").
    """
    groups: list[list[Phrase]] = []
    for place, phrase in enumerate(phrases):
        opens = place == 1 and phrases[0].link in ("after", "before") and phrase.link == ","
        if not groups or opens or phrase.link in (*_THEN, "after"):
            groups.append([Phrase("", phrase.text)])
        else:
            groups[-1].append(phrase)
    texts = [joined(group) for group in groups]
    if phrases[0].link == "before":
        return [*texts[1:], texts[0]]
    cuts = [phrase.link for phrase in phrases[1:] if phrase.link in (*_THEN, "after")]
    if "after" not in cuts:
        return texts
    plain = cuts.index("after") == 0 and cuts.count("after") == 1 and not phrases[0].link
    return [texts[1], texts[0], *texts[2:]] if plain else []


def joined(phrases: list[Phrase]) -> str:
    """The phrases with their connectives, as a caption without capital or full stop."""
    text = ""
    for phrase in phrases:
        text += f", {phrase.text}" if phrase.link == "," else f" {phrase.link} {phrase.text}"
    return " ".join(text.split())


def is_clause(text: str) -> bool:
    """Whether a phrase has a finite verb ("a dog barks", "birds are chirping"); "a dog barking" has none."""
    words = re.findall(r"[a-z'-]+", text.lower())
    pairs = list(pairwise(words))
    if any(word in _AUXILIARIES for _, word in pairs):
        return True
    if not words or words[0].endswith("ing"):  # "typing occurs" is a clause, "typing on a keyboard" is not
        return any(word.endswith("s") and _is_verb(word) for word in words[1:2])
    compounds = {
        word for word, after in pairs if after.endswith("ing") and word not in _ASPECT
    }  # "a tool drill operating"
    words_before = [(before, word) for before, word in pairs if word not in compounds]
    verbs = any(
        before not in _DETERMINERS and not before.endswith("'s") and _is_verb(word) for before, word in words_before
    )
    # A verb that is not listed: "a turbine whines" has a word in -s that is no plural after "of", and no -ing.
    ends = [word for before, word in pairs[1:] if before not in (*_DETERMINERS, *_PREPOSITIONS)]
    unlisted = words[0] in ("a", "an") and any(re.fullmatch(r"[a-z]+[^aisu']s", word) for word in ends)
    return verbs or (unlisted and not any(word.endswith("ing") for word in words))


def begins_with_verb(text: str) -> bool:
    """Whether a phrase begins with its finite verb: "laughs" in "a man speaks then laughs"."""
    first = _first(text)
    return first in _AUXILIARIES or (first.endswith("s") and _is_verb(first))


def lacks_subject(text: str) -> bool:
    """Whether a phrase needs the one before it, so that it cannot stand first: "laughs", "it idles", "turning off"."""
    return begins_with_verb(text) or _first(text) in _PRONOUNS | _BOUND


def begins_with_participle(text: str) -> bool:
    """Whether a phrase begins with an -ing form ("knocking on a door"); "something splashes" does not."""
    return re.match(r"(?!something|nothing|anything)[a-z]+ing\b", text) is not None


def lowered(text: str) -> str:
    """The text with a small first letter, unless its first word is a name in capitals or "I"."""
    text = text.strip()
    return text if text[1:2].isupper() or text.startswith("I ") else text[:1].lower() + text[1:]


def _first(text: str) -> str:
    return re.findall(r"[a-z'-]*", text.lower())[0]


def _is_open(text: str) -> bool:
    """Whether a phrase ends with an auxiliary, so that its verb is yet to come."""
    return _AUXILIARY_END.search(text) is not None


def _is_verb(word: str) -> bool:
    """Whether a word is a listed verb, as "they" or "it" does it."""
    stems = (word, word.removesuffix("s"), word.removesuffix("es"), word.removesuffix("ies") + "y")
    return any(stem in _VERBS for stem in stems)


def _is_sound(text: str) -> bool:
    """Whether a phrase can stand alone: it holds a verb in some form, or names a known sound with two words or one."""
    words = re.findall(r"[a-z']+", text.lower())
    verb = is_clause(text) or any(re.fullmatch(r"[a-z]{3,}ing", word) for word in words)
    known = any(sound.keys.search(text) for sound in SOUNDS if sound.kin not in ("voices", "animals"))
    return bool(words) and (verb or known) and words[0] not in (*_PREPOSITIONS, "off", "into", "to")
