"""Sounds of AudioSet for the `events` scorer: what captions call them, and Cnn14 as a tagger of them over time.

A sound is one or several of AudioSet's 527 classes, by their places in Cnn14's outputs (the order of AudioSet's
`class_labels_indices.csv`), with the words that name it in captions. What this cannot tell: how often a sound comes;
sounds that no row names, which are passed over in captions and in clips; who of one kin is heard beside whom, since a
class is no extra sound beside one of its kin; an order of beginnings within one second. Cnn14's posteriors are not
calibrated, so scores compare clips of one caption only.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch

from milonga.core.audio import resample
from milonga.core.records import Clip, Scene
from milonga.maths.devices import where
from milonga.maths.resampling import resample_waves
from milonga.nano.reader import read_groups
from milonga.scorers.panns import PannsEmbedder

WINDOW, HOP = 2.0, 1.0  # seconds of a clip that Cnn14 is given at once, and from one beginning to the next

# Name | kin | places among the 527 | words in captions. A row takes the words that rows below it
# share with it; an indented line continues a row.
_TABLE = r"""
Baby crying | voices | 22 23 24 | (?:bab(?:y|ies)|infants?|toddlers?)\b.*\b(?:cr(?:y|ies|ying)|whimper\w*|wail\w*|
    sob\w*)
Laughter | voices | 16 17 18 19 20 21 | laugh\w*|giggl\w*|chuckl\w*|snicker\w*
Crying | voices | 22 23 24 25 | cry(?:ing)?|cries|sob\w*|weep\w*
Screaming | voices | 8 9 10 11 13 14 | scream\w*|shout\w*|yell\w*
Whispering | voices | 15 | whisper\w*
Singing | voices | 27 28 29 30 31 32 33 34 35 36 37 | (?:m[ae]n|wom[ae]n|person|people|child(?:ren)?|choir|girls?|
    boys?|someone|voices?)\b.*\bs(?:ing|ings|inging|ang)
Snoring | body | 43 | snor(?:e|es|ing)\b
Cough | body | 47 48 | cough\w*|(?:clear\w* (?:his|her|their|the)? ?throat)
Sneeze | body | 49 50 | sneez\w*|sniff\w*
Burp | body | 58 59 | burp\w*|belch\w*|hiccup\w*
Breathing | body | 41 42 44 45 | breath\w*|pant(?:s|ing)\b|gasp\w*
Applause | crowd | 63 66 67 | applau\w*|clap(?:s|ping)?\b|cheer\w*
Crowd | crowd | 64 68 69 70 | crowd\w*|chatter\w*|babbl\w*
Man speaking | voices | 1 | (?:m[ae]n|males?|guys?|boys?)\b
Woman speaking | voices | 2 | (?:wom[ae]n|females?|lad(?:y|ies)|girls?)\b
Child speaking | voices | 3 13 71 | (?:child(?:ren)?|kids?|toddler)\b
Speech | voices | 0 4 5 6 | speech|speak\w*|talk\w*|convers\w*|narrat\w*|voices?\b
Footsteps | steps | 51 52 53 | footsteps?|walk(?:s|ing)?\b|footfalls?
Dog | dogs | 74 75 76 77 78 79 80 | dogs?\b|pupp(?:y|ies)|bark(?:s|ing)?\b|canine|growl\w*|yap(?:s|ping)?\b
Cat | cats | 81 82 83 84 85 | cats?\b|kittens?|meow\w*|purr\w*|hiss\w*
Horse | hooves | 87 88 89 | horses?|neigh\w*|clip.?clop\w*|hooves|gallop\w*
Cow | farm | 90 91 92 | cows?\b|cattle|moo(?:s|ing)?\b
Pig | farm | 93 94 | pigs?\b(?:.*\bsqueal\w*)?|oink\w*
Sheep | farm | 95 96 97 | sheep|goats?|bleat\w*|lambs?|baa\w*
Rooster | fowl | 98 99 100 101 102 103 | roosters?|chickens?|hens?\b|cluck\w*|turkeys?|gobbl\w*
Duck | fowl | 104 105 106 107 | ducks?\b|quack\w*|goose|geese
Insect | insects | 126 127 128 129 130 131 | (?:insects?|crickets?|bugs?) chirp\w*|insects?|bugs?\b|bees?\b|fl(?:y|
    ies) buzz\w*|crickets?|mosquito\w*|buzz(?:es|ing)?\b|wasps?
Pigeon | birds | 115 116 | pigeons?|doves?|coo(?:s|ing)?\b
Owl | birds | 119 120 | owls?|hoot(?:s|ing)?\b
Bird | birds | 111 112 113 114 117 118 121 | birds?\b|chirp\w*|tweet\w*|crows?\b|squawk\w*|wings?\b|birdsong
Frog | frogs | 132 133 | frogs?|croak\w*|toads?
Music | music | 137 138 140 153 161 184 216 | music\w*|guitars?|pianos?|drums?\b|orchestra|melod\w*|songs?\b|
    violins?|instrument\w*
Bell | bells | 200 201 202 203 205 206 207 | (?:church |bicycle |small |large )?bells?\b|chim(?:e|es|ing)\b|
    toll(?:s|ing)?\b
Wind | wind | 283 285 | winds?\b|breeze|gusts?
Leaves | rustle | 284 487 | rustl\w*|leaves
Thunder | storm | 286 287 | thunder\w*
Boat | motors | 301 302 303 304 305 | (?:motor|speed)?boats?\b|water vehicles?|ships?\b
Rain | water | 289 290 291 | rain\w*|downpour
Waves | water | 294 295 | waves?\b|surf\b|ocean|sea\b
Toilet | water | 374 | toilets?|flush\w*
Water | water | 288 292 293 297 370 371 372 444 445 446 448 449 450 451 452 | water\w*|streams?|rivers?|splash\w*|
    faucets?|trickl\w*|gurgl\w*|drip(?:s|ping)?\b|pour(?:s|ing)?\b
Fire | fire | 298 299 | fires?\b(?! truck| engine| alarm)|crackl\w*
Race car | motors | 312 313 315 | rac(?:e|ing) cars?|skid\w*|tires? squeal\w*|squealing tires?
Motorcycle | motors | 326 | motor(?:cycles?|bikes?)
Lawn mower | motors | 346 347 | (?:lawn ?)?mowers?|chainsaws?
Siren | sirens | 322 323 324 325 396 397 | sirens?|ambulances?|police cars?|fire (?:trucks?|engines?)|
    emergency vehicles?
Train horn | rails | 330 331 | train (?:horns?|whistles?)|train\b.*\b(?:honk|blow)\w*
Train | rails | 328 329 332 333 334 | trains?\b|locomotive|railroad|railway|subway
Vehicle horn | horns | 308 309 310 318 319 | (?:(?:car|truck|vehicle|bus) )?horns?\b|(?:(?:cars?|vehicles?|
    trucks?)\b.*\b)?honk\w*|toot\w*|car alarms?
Helicopter | aircraft | 338 339 | helicopters?|choppers?|propellers?|rotors?
Aircraft | aircraft | 335 336 337 340 | aircrafts?|air ?planes?|planes?\b|jets?\b
Engine | motors | 300 306 307 314 316 317 321 327 343 344 348 349 350 351 352 353 | engines?|motors?\b|idl(?:e|es|
    ing)\b|rev(?:s|ving|ved)?\b|vehicles?|cars?\b|trucks?|bus(?:es)?\b|traffic|accelerat\w*
Door | impacts | 354 357 358 362 363 | doors?\b(?!.*\bknock)|slam\w*|cupboards?|drawers?
Knock | impacts | 359 360 | knock\w*|tap(?:s|ping)?\b
Dishes | dishes | 364 365 442 | dish(?:es)?\b|plates?\b|silverware|cutlery|clink\w*|clank\w*
Frying | kitchen | 367 490 | fry(?:ing)?\b|fried|sizzl\w*
Sewing machine | machines | 411 | sewing machines?
Typing | keys | 384 385 386 | typ(?:e|es|ing)\b|keyboards?|typewriters?
Vacuum cleaner | machines | 377 373 369 | vacuum\w*|hair ?dryers?|blenders?
Telephone | phones | 389 390 391 392 393 394 | (?:tele)?phones?\b|ringtones?|dial(?:s|ing)?\b
Alarm | alarms | 388 395 398 399 400 481 | alarms?\b|beep\w*|bleep\w*|buzzers?
Whistle | whistles | 40 402 403 | whistl\w*
Clock | ticks | 406 407 408 | clocks?\b|tick\w*|tock\w*
Tools | tools | 404 405 418 419 420 421 422 423 424 425 345 | drill\w*|saw(?:s|ing)?\b|hammer\w*|power tools?|
    tools?\b|machin\w*|sand(?:ing|ers?)\b|jackhammer
Camera | cameras | 416 417 | cameras?|shutters?
Explosion | blasts | 426 430 434 435 436 | explo\w*|blasts?\b|boom\w*
Fireworks | blasts | 432 433 | fireworks?|firecrackers?
Gunshot | blasts | 427 428 429 431 | gun\w*|shots?\b|shoot\w*|rifles?|pistols?
Glass | impacts | 437 441 443 | glass|shatter\w*
Spray | sprays | 453 | spray\w*
Whoosh | whooshes | 459 | whoosh\w*|swoosh\w*|swish\w*
Crumpling | rustle | 479 480 | crumpl\w*|crinkl\w*|tear(?:s|ing)\b paper
Squeak | squeaks | 361 485 486 | squeak\w*|squeal\w*|creak\w*
"""
_ROWS = [
    tuple(cell.strip() for cell in row.split(" | ", 3)) for row in _TABLE.strip().replace("\n    ", "").splitlines()
]
SOUNDS = tuple(name for name, *_ in _ROWS)
KIN = {name: kin for name, kin, *_ in _ROWS}
PLACES = tuple([int(place) for place in places.split()] for _, _, places, _ in _ROWS)
_WORDS = {name: re.compile(rf"\b(?:{words})") for name, _, _, words in _ROWS}


def read_sounds(text: str) -> Scene | None:
    """The scene of an English caption in `SOUNDS`; None where it names none of them."""
    return read_groups(text, sounds_in)


def sounds_in(words: str) -> list[str]:
    """The sounds that a phrase names, in the order of the table; a sound takes its words from the others.

    A man, a woman or a child is a voice where the phrase says that they speak, or nothing else of them: a man who
    sneezes is a sneeze.
    """
    names = []
    for name, pattern in _WORDS.items():
        rest = pattern.sub(" ", words)
        if rest != words:
            names.append(name)
            words = rest
    speakers = [name for name in names if name.endswith(" speaking")]
    others = [name for name in names if name not in speakers]
    if "Speech" in others and speakers:
        return [name for name in names if name != "Speech"]
    return others or speakers


class AudioSetTagger:
    """`SOUNDS` over time by Cnn14: posteriors of windows of `WINDOW` seconds, every `HOP` seconds."""

    classes = SOUNDS
    resolution = HOP  # seconds by which the ends of an event may be wrong

    def __init__(self, embedder: PannsEmbedder) -> None:
        self.name = embedder.name
        self.embedder = embedder

    def posteriors(self, clips: Sequence[Clip]) -> list[np.ndarray]:
        """Each clip's posteriors, shape (windows, sounds): of a sound, that of its likeliest class."""
        rate = self.embedder.network.mel.rate
        parts = [windows(resample(clip, rate)) for clip in clips]
        _, logits = self.embedder.features([part for own in parts for part in own])
        likeliest = np.stack([logits[:, places].max(axis=1) for places in PLACES], axis=1)
        posteriors = 1 / (1 + np.exp(-likeliest.astype(np.float64)))
        return np.split(posteriors, np.cumsum([len(own) for own in parts])[:-1])

    def wave_logits(self, waves: torch.Tensor, rate: int) -> torch.Tensor:
        """The logits of waveforms (B, samples) at `rate` Hz, shape (B, windows, sounds), with gradients by them."""
        own, waves = self.embedder.network.mel.rate, waves.to(where(self.embedder.network))
        waves = resample_waves(waves - waves.mean(1, keepdim=True), rate, own)
        size, starts = round(WINDOW * own), window_starts(waves.shape[1], own)
        waves = torch.nn.functional.pad(waves, (0, max(0, size - waves.shape[1])))
        logits = torch.stack([self.embedder.network(waves[:, start : start + size])[1] for start in starts], dim=1)
        return torch.stack([logits[..., places].amax(-1) for places in PLACES], dim=-1)


def windows(clip: Clip) -> list[Clip]:
    """The clip in windows of `WINDOW` seconds; the last ends where the clip ends."""
    size, starts = round(WINDOW * clip.rate), window_starts(len(clip.waveform), clip.rate)
    return [Clip(clip.waveform[start : start + size], clip.rate) for start in starts]


def window_starts(samples: int, rate: int) -> list[int]:
    """The first sample of each window of a clip."""
    last = max(0, samples - round(WINDOW * rate))
    return [*range(0, last, round(HOP * rate)), last]
