"""The sounds of the small world and the English words for each.

`CLASSES` has AudioSet's names. `VOICES` gives each class its subjects with their verbs ("a dog" + "bark"), its
noun phrases ("the barking of a dog") and, where its sounds can be counted, a counted noun ("gunshot", "gunshots").
Alternatives are separated by `|` to keep the table readable.
"""

from dataclasses import dataclass

_DOUBLING = {"hum", "run", "yap", "tap", "clap", "spin", "chop", "hit", "whir", "rev"}


@dataclass(frozen=True)
class Form:
    """Subjects and the verbs that fit any of them."""

    subjects: tuple[str, ...]
    verbs: tuple[str, ...]
    plural: bool


@dataclass(frozen=True)
class Voice:
    """The English words for one class of sound."""

    forms: tuple[Form, ...]
    nouns: tuple[str, ...]
    adverbs: tuple[str, ...]
    counted: tuple[str, str] | None = None


def third_person(verb: str) -> str:
    """The verb in the third person singular: bark -> barks, pass by -> passes by, fly -> flies."""
    head, _, rest = verb.partition(" ")
    if head.endswith("y") and head[-2] not in "aeiou":
        head = head[:-1] + "ies"
    else:
        head += "es" if head.endswith(("s", "x", "z", "ch", "sh", "o")) else "s"
    return f"{head} {rest}".strip()


def participle(verb: str) -> str:
    """The verb's -ing form: bark -> barking, idle -> idling, run -> running."""
    head, _, rest = verb.partition(" ")
    if head in _DOUBLING:
        head += head[-1]
    elif head.endswith("e"):
        head = head[:-1]
    return f"{head}ing {rest}".strip()


def _one(subjects: str, verbs: str) -> Form:
    return Form(tuple(subjects.split("|")), tuple(verbs.split("|")), plural=False)


def _many(subjects: str, verbs: str) -> Form:
    return Form(tuple(subjects.split("|")), tuple(verbs.split("|")), plural=True)


def _voice(*forms: Form, nouns: str, adverbs: str, counted: str = "") -> Voice:
    single, _, several = counted.partition("|")
    return Voice(forms, tuple(nouns.split("|")), tuple(adverbs.split("|")), (single, several) if counted else None)


_AFAR = "loudly|in the distance|nearby"

VOICES: dict[str, Voice] = {
    "Man speaking": _voice(
        _one("a man|an adult male|a male|an older man|a young man", "speak|talk|give a speech"),
        _one("a male voice|a man's voice", "speak|talk"),
        _many("men|several men", "speak|talk"),
        nouns="a male voice|male speech|the voice of a man|a man's voice|a male speaking",
        adverbs="loudly|softly|calmly|in the distance|nearby|quickly",
    ),
    "Woman speaking": _voice(
        _one("a woman|an adult female|a female|an older woman|a young woman|a lady", "speak|talk|give a speech"),
        _one("a female voice|a woman's voice", "speak|talk"),
        _many("women|several women", "speak|talk"),
        nouns="a female voice|female speech|the voice of a woman|a woman's voice|a female speaking",
        adverbs="loudly|softly|calmly|in the distance|nearby|quickly",
    ),
    "Child speaking": _voice(
        _one("a child|a young child|a kid|a little girl|a little boy|a young boy|a young girl", "speak|talk"),
        _one("a child's voice", "speak|talk"),
        _many("children|kids|several children", "speak|talk"),
        nouns="a child's voice|the voice of a child|the voices of children|the speech of a child|a young child's voice",
        adverbs="loudly|softly|excitedly|in the distance|nearby|quickly",
    ),
    "Dog": _voice(
        _one("a dog|a small dog|a large dog|a puppy", "bark|yap|woof"),
        _many("dogs|several dogs|small dogs", "bark|yap"),
        nouns="the barking of a dog|canine barks|dog barks|barking dogs|a barking dog|the yapping of a small dog",
        adverbs="loudly|in the distance|nearby|excitedly|aggressively",
        counted="dog bark|dog barks",
    ),
    "Cat": _voice(
        _one("a cat|a kitten|a small cat", "meow|mew"),
        _many("cats|kittens", "meow"),
        nouns="the meowing of a cat|feline meows|cat meows|a meowing cat|the meow of a cat",
        adverbs="loudly|softly|nearby",
        counted="cat meow|cat meows",
    ),
    "Bird": _voice(
        _one("a bird|a small bird|a songbird", "chirp|sing|tweet"),
        _many("birds|several birds|small birds", "chirp|sing|tweet"),
        nouns="the chirping of birds|birdsong|bird calls|chirping birds|the tweeting of a bird|a chirping bird",
        adverbs="loudly|softly|in the distance|nearby|repeatedly",
    ),
    "Rooster": _voice(
        _one("a rooster|a cockerel", "crow|call"),
        _many("roosters", "crow"),
        nouns="the crowing of a rooster|a crowing rooster|rooster crows|a rooster's crow|the crow of a rooster",
        adverbs=_AFAR,
        counted="rooster crow|rooster crows",
    ),
    "Frog": _voice(
        _one("a frog|a toad|a bullfrog", "croak|ribbit"),
        _many("frogs|several frogs", "croak|ribbit"),
        nouns="the croaking of a frog|frog croaks|croaking frogs|a croaking frog|the croaking of frogs",
        adverbs="loudly|repeatedly|nearby|in the distance",
        counted="frog croak|frog croaks",
    ),
    "Rain": _voice(
        _one("rain|heavy rain|light rain|a steady rain", "fall|pour|patter|pour down|patter on a roof|hit the ground"),
        _many("raindrops", "fall|patter|hit a roof"),
        nouns="rainfall|a downpour|rain|heavy rain|the patter of rain|pouring rain|falling raindrops",
        adverbs="steadily|heavily|softly",
    ),
    "Thunder": _voice(
        _one("thunder|loud thunder|distant thunder", "rumble|roar|crack|roll|boom"),
        nouns="thunder|a clap of thunder|rumbling thunder|claps of thunder|the rumble of thunder|a thunderclap",
        adverbs="loudly|in the distance",
        counted="clap of thunder|claps of thunder",
    ),
    "Wind": _voice(
        _one("wind|the wind|strong wind|a strong wind", "blow|howl|gust|whistle"),
        _many("strong winds", "blow|howl"),
        nouns="wind|gusts of wind|the howling of the wind|blowing wind|howling wind|strong wind",
        adverbs="strongly|heavily|softly",
    ),
    "Water": _voice(
        _one("water|a stream|a small stream", "run|flow|trickle|gurgle"),
        _one("water", "splash|pour"),
        nouns="running water|flowing water|the trickling of water|a trickling stream|the gurgling of water",
        adverbs="steadily|softly|quickly|nearby",
    ),
    "Waves": _voice(
        _many("waves|ocean waves|sea waves|big waves", "crash|roll|break|crash on the shore|roll onto a beach"),
        _one("the ocean|the sea|the surf", "roar"),
        nouns="crashing waves|ocean waves|the crash of waves|the surf|waves on a beach|breaking waves",
        adverbs="loudly|softly|repeatedly",
    ),
    "Engine": _voice(
        _one("an engine|a motor|a car engine|a vehicle engine|a truck engine", "idle|run|hum|rev|rumble"),
        _many("engines", "run|hum|rev"),
        nouns="an engine|the hum of an engine|an idling engine|a running motor|the rumble of an engine|engine noise",
        adverbs="loudly|steadily|smoothly|nearby",
    ),
    "Car horn": _voice(
        _one("a car horn|a vehicle horn", "honk|beep|blow|blare"),
        _one("a car|a vehicle|a horn", "honk|beep"),
        _many("car horns|cars", "honk"),
        nouns="the honking of a car horn|a honking horn|car horn honks|the beep of a car horn|a honking car",
        adverbs=_AFAR,
        counted="car horn honk|car horn honks",
    ),
    "Siren": _voice(
        _one("a siren|an emergency siren|a police siren|an ambulance siren", "wail|blare|sound|go off"),
        _many("sirens|emergency sirens", "wail|blare|sound"),
        nouns="a siren|sirens|the wail of a siren|a wailing siren|an emergency siren|blaring sirens",
        adverbs=_AFAR,
    ),
    "Train": _voice(
        _one("a train|a locomotive", "pass by|rumble by|go by|move along the tracks|run on railroad tracks|clatter"),
        nouns="a train|a train on the tracks|the clatter of a train|a passing train|the rumble of a train",
        adverbs=_AFAR,
    ),
    "Helicopter": _voice(
        _one("a helicopter|a chopper", "fly|fly overhead|hover|pass overhead|whir"),
        _many("helicopter blades|helicopter rotors", "spin|whir|chop"),
        nouns="a helicopter|the whirring of helicopter blades|a hovering helicopter|helicopter rotors|rotor blades",
        adverbs="loudly|nearby|in the distance",
    ),
    "Bell": _voice(
        _one("a bell|a church bell|a large bell", "ring|toll|chime|clang|ding"),
        _many("bells|church bells", "ring|chime|toll"),
        nouns="the ringing of a bell|a ringing bell|bell chimes|the tolling of a bell|church bells|the clang of a bell",
        adverbs=_AFAR,
        counted="bell chime|bell chimes",
    ),
    "Telephone": _voice(
        _one("a telephone|a phone|an old telephone|an old phone", "ring|go off"),
        _many("telephones|phones", "ring"),
        nouns="the ringing of a telephone|a ringing phone|a ringing telephone|telephone rings|the ring of a phone",
        adverbs="loudly|nearby|repeatedly",
        counted="telephone ring|telephone rings",
    ),
    "Clock": _voice(
        _one("a clock|an old clock|a grandfather clock|a wall clock", "tick|tick away"),
        _many("clocks", "tick"),
        nouns="the ticking of a clock|a ticking clock|clock ticks|the ticks of a clock|a clock's ticking",
        adverbs="steadily|rhythmically|quietly|loudly|nearby",
    ),
    "Keyboard": _voice(
        _one("a keyboard|a computer keyboard", "click|clack|clatter"),
        _one("someone|a person", "type|type on a keyboard|type on a computer keyboard"),
        _many("keys on a keyboard|keyboard keys", "click|clack"),
        nouns="typing on a keyboard|keyboard typing|the clicking of a keyboard|computer keyboard typing|rapid typing",
        adverbs="quickly|rapidly|steadily",
    ),
    "Knock": _voice(
        _one("someone|a person", "knock on a door|knock|knock at the door|tap on a door"),
        nouns="knocking on a door|a knock on the door|knocks at a door|knocking|door knocks|knocking at the door",
        adverbs="loudly|softly|repeatedly",
        counted="knock on a door|knocks on a door",
    ),
    "Footsteps": _voice(
        _many("footsteps|heavy footsteps|quick footsteps", "tap|approach|echo"),
        _one("someone|a person", "walk|walk by|walk on a hard floor|walk around"),
        nouns="footsteps|heavy footsteps|footsteps on a wooden floor|the footsteps of a person|quick footsteps",
        adverbs="loudly|softly|nearby|steadily",
    ),
    "Gunshot": _voice(
        _one("a gun|a rifle|a pistol", "fire|shoot|go off"),
        _one("a gunshot", "ring out|sound"),
        _many("gunshots|loud gunshots", "ring out|sound"),
        nouns="gunfire|a gunshot|gunshots|the firing of a gun|loud gunshots|a loud gunshot",
        adverbs=_AFAR,
        counted="gunshot|gunshots",
    ),
    "Applause": _voice(
        _one("an audience|a crowd|a group of people", "applaud|clap"),
        _many("people|many people", "clap|applaud|clap their hands"),
        nouns="applause|loud applause|the applause of a crowd|a round of applause|the clapping of an audience",
        adverbs="loudly|enthusiastically|in the distance",
    ),
}

CLASSES = tuple(VOICES)
