"""Scorers and taggers by name: those that ship, a folder, a repository of the Hub, LAION's CLAP, or events by a tagger.

LAION's is named `laion-clap:PATH[@WINDOWS]`, PATH being LAION's own `.pt`, or a folder or a repository (`user/name`) in
transformers' layout. A `.pt` is converted once, to safetensors in the cache, under its hash: it is read as a file of
tensors and never run.

What `listen fit` learnt from people is named `fit:FOLDER`. A caption's yes/no questions are `rubric:TAGGER`, or
`rubric:MODEL@URL` where an audio model answers them through an OpenAI-compatible server; `+calibration=CLIPS.csv` names
the clips on which either is calibrated, `+items=llm:MODEL@URL` who writes the questions. Events are named
`events:TAGGER`: TAGGER is a tagger of nano's world by name or folder, or the file of Cnn14's weights at 16 kHz, for
AudioSet's sounds. `audiobox-aesthetics[:AXIS]` is of the package of that name.
"""

import re
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milonga.core.cache import cache_folder, feature_cache, once
from milonga.core.deferred import deferred_imports
from milonga.core.errors import CheckpointError, RecipeError, brief
from milonga.core.hub import as_repository, is_offline
from milonga.core.ids import content_id, file_hash
from milonga.core.store import atomic_dir
from milonga.core.weights import WEIGHTS, fetch_model, weights_of
from milonga.core.weights import fingerprint as weights_fingerprint
from milonga.maths.devices import AUTO

if TYPE_CHECKING:
    from milonga.scorers.events import EventScorer
    from milonga.scorers.fitted import FittedScorer
    from milonga.scorers.laion_clap import LaionClap
    from milonga.scorers.rubric import RubricScorer
    from milonga.scorers.tagger import EventTagger

PREFIX = "laion-clap:"
EVENTS = "events:"
FIT = "fit:"
RUBRIC = "rubric:"
AESTHETICS = "audiobox-aesthetics"
SHORT = {"nano-events": "events:nano-tagger-b"}
TOKENIZER = "FacebookAI/roberta-base"
WINDOWS = re.compile(r"@(first|mean|random:\d+)$")
RUBRIC_OPTIONS = re.compile(r"\+(?=(?:calibration|items)=)")
CLASS = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)")


@once
def scorer(name: str, device: Any = AUTO) -> Any:
    """A CLAP by its name or folder, LAION's as `laion-clap:PATH[@WINDOWS]`, events as `events:TAGGER`, or a class.

    Its networks are on `device` (see `maths.devices.device_of`); a class places its own. A class is named
    `package.module:Class`; it is called without arguments and gives an object with `name` and `score(clips, texts)`,
    embeddings being optional. Raises RecipeError for a class that cannot be imported or is no scorer, and for an
    unknown name; CheckpointError for weights that cannot be used.
    """
    if name.startswith(RUBRIC):
        return rubric_scorer(name, device)
    if tagger_of(name):
        return event_scorer(name, device)
    if name.startswith(FIT):
        return fitted_scorer(name, device)
    if name.partition(":")[0] == AESTHETICS:
        from milonga.scorers.packaged import AestheticsScorer

        return AestheticsScorer(name)
    if not name.startswith(PREFIX) and CLASS.fullmatch(name):
        return class_scorer(name)
    from milonga.scorers.clap import load_clap

    with deferred_imports():
        from transformers.utils import logging

    logging.disable_progress_bar()
    if name.startswith(PREFIX):
        return laion_scorer(name, device)
    return load_clap(weights_of(name), name, device)


def tagger_of(name: str) -> str:
    """The tagger of an events or rubric scorer's name; "" for another scorer."""
    name = RUBRIC_OPTIONS.split(SHORT.get(name, name))[0]
    by_tagger = name.startswith(EVENTS) or (name.startswith(RUBRIC) and "@http" not in name)
    return name.partition(":")[2] if by_tagger else ""


def event_scorer(name: str, device: Any = AUTO) -> "EventScorer":
    """The scorer of events, or the rubric, by the tagger in that name. Raises RecipeError or CheckpointError as its
    loading does."""
    from milonga.nano.reader import read_scene
    from milonga.scorers.audioset import KIN, AudioSetTagger, read_sounds
    from milonga.scorers.events import EventScorer
    from milonga.scorers.panns import load_panns
    from milonga.scorers.rubric import TaggerRubric

    own, kind = tagger_of(name), TaggerRubric if name.startswith(RUBRIC) else EventScorer
    if Path(own).suffix in (*WEIGHTS, ".pth"):
        return kind(name, AudioSetTagger(load_panns(Path(own), device=device)), read_sounds, KIN)
    return kind(name, tagger(own, device), read_scene)


def rubric_scorer(name: str, device: Any = AUTO) -> "RubricScorer | EventScorer":
    """The rubric by a tagger, or by an audio model with its answers in the user's cache. Raises RecipeError for another
    name, for questions by a language model to a tagger, or where the `openai` client is not installed; DataError for
    calibration clips that cannot be used."""
    from milonga.perturbers.endpoint import Endpoint
    from milonga.perturbers.questions import QuestionWriter
    from milonga.scorers.rubric import RubricScorer, read_calibration

    answerer, *options = RUBRIC_OPTIONS.split(name)
    chosen = dict(option.split("=", 1) for option in options)
    clips = read_calibration(Path(chosen["calibration"])) if "calibration" in chosen else None
    if tagger_of(name):
        if "items" in chosen:
            raise RecipeError(f"{name}: a tagger cannot answer free questions; name an audio model, rubric:MODEL@URL")
        by_tagger: Any = event_scorer(name, device)
        by_tagger.calibration = clips
        return by_tagger
    writer = None
    if "items" in chosen:
        writer = QuestionWriter(Endpoint.of(chosen["items"], "llm", "items of the rubric"), cache_folder("llm"))
    endpoint = Endpoint.of(answerer, "rubric", "the scorer's name")
    by_model = RubricScorer(endpoint, cache_folder("rubric"), calibration=clips, writer=writer)
    by_model.name = name
    return by_model


def fitted_scorer(name: str, device: Any = AUTO) -> "FittedScorer":
    """The scorer that `listen fit` wrote. Raises CheckpointError for another folder, or where the weights of one of its
    embedders are not those that it was fitted on."""
    from milonga.scorers.fitted import FittedScorer, load_head, read_facts

    folder = Path(name.removeprefix(FIT))
    embedders = read_facts(folder)["embedders"]
    for own, digest in embedders.items():
        if fingerprint(own) != digest:
            raise CheckpointError(f"{name}: {own} has other weights than those that it was fitted on; fit it again")
    return FittedScorer(name, [scorer(own, device) for own in embedders], load_head(folder))


def class_scorer(name: str) -> Any:
    """An object of the scorer class `package.module:Class`. Raises RecipeError as `scorer`."""
    module, _, attribute = name.partition(":")
    try:
        built = getattr(import_module(module), attribute)()
    except (ImportError, AttributeError, TypeError) as error:
        raise RecipeError(f"scorer {name!r} cannot be made ({brief(error)}): name an importable class") from error
    if not (isinstance(getattr(built, "name", None), str) and callable(getattr(built, "score", None))):
        raise RecipeError(f"scorer {name!r} is no scorer: it needs `name` and `score(clips, texts)`")
    try:
        built.name = name  # thresholds and rankings call it as the recipe does
    except AttributeError:
        raise RecipeError(f"scorer {name!r}: its `name` must be an attribute that can be set") from None
    return built


@once
def tagger(name: str, device: Any = AUTO) -> "EventTagger":
    """A tagger by its name or folder, on a device."""
    from milonga.scorers.tagger import load_tagger

    return load_tagger(weights_of(name), name, device)


def fingerprint(name: str) -> str:
    """A hash of a part's weights, without loading them: of what ships, a folder, a repository, or LAION's CLAP.

    Of a scorer class it is that of its module's source. Raises CheckpointError when there are no weights.
    """
    if own := tagger_of(name):
        path = Path(own)
        return content_id(EVENTS, file_hash(path) if path.is_file() else weights_fingerprint(own))
    if name.partition(":")[0] == AESTHETICS or (name.startswith(RUBRIC) and not tagger_of(name)):
        return content_id(name)  # the weights are a package's or a server's own
    if name.startswith(FIT):
        from milonga.scorers.fitted import HEAD, read_facts

        folder = Path(name.removeprefix(FIT))
        return content_id(FIT, read_facts(folder)["embedders"], file_hash(folder / HEAD))
    if not name.startswith(PREFIX) and CLASS.fullmatch(name):
        origin = getattr(find_spec(name.partition(":")[0]), "origin", None)
        if origin is None or not Path(origin).is_file():
            raise RecipeError(f"scorer {name!r}: there is no module {name.partition(':')[0]}")
        return content_id(name, file_hash(Path(origin)))
    return laion_fingerprint(name) if name.startswith(PREFIX) else weights_fingerprint(name)


def parsed(name: str) -> tuple[Path, str]:
    """The path in `laion-clap:PATH[@WINDOWS]`, and the windows of longer clips: `first`, `mean` or `random:SEED`.

    Raises RecipeError for a name without a path, or whose path is not there; CheckpointError for a repository that
    cannot be fetched.
    """
    rest = name.removeprefix(PREFIX)
    match = WINDOWS.search(rest)
    place, windows = (rest[: match.start()], match[1]) if match else (rest, "first")
    path = Path(place)
    if path.suffix != ".pt" and not (path.name and path.exists()) and as_repository(place):
        path = _fetched(place)
    if not path.name or not path.exists():
        raise RecipeError(
            f"{name!r}: {path} does not exist; write {PREFIX}FILE.pt, {PREFIX}FOLDER or {PREFIX}user/name, "
            "with @first, @mean or @random:SEED after it for longer clips"
        )
    return path, windows


@lru_cache(maxsize=4)
def _fetched(name: str) -> Path:
    return fetch_model(name)


def laion_fingerprint(name: str) -> str:
    """A hash of the weights and of the windows of longer clips, without loading them.

    Raises CheckpointError for a folder without weights.
    """
    path, windows = parsed(name)
    return content_id(_identity(path), windows)


def laion_scorer(name: str, device: Any = AUTO) -> "LaionClap":
    """The scorer of that name; its clip embeddings are cached under the hashes of audio and model.

    Raises RecipeError for a bad name, CheckpointError naming the file or folder and what is wrong with it.
    """
    from milonga.scorers.laion_clap import Windows, load_laion

    path, windows = parsed(name)
    identity = _identity(path)
    folder = _converted(path, identity) if path.is_file() else path
    return load_laion(folder, name, Windows.of(windows), feature_cache(), identity, device)


def _identity(path: Path) -> str:
    """A hash of a file, or of all weights in a folder."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in WEIGHTS)
    if not files:
        raise CheckpointError(f"{path} holds no {' or '.join(WEIGHTS)} weights: give a .pt or a folder that does")
    return content_id([[file.name, _hashed(file, file.stat().st_mtime_ns)] for file in files])


@lru_cache(maxsize=32)
def _hashed(path: Path, written: int) -> str:
    """A file's hash, taken once for as long as the file stays as it was `written`."""
    return file_hash(path)


def _converted(path: Path, identity: str) -> Path:
    """The folder of what a `.pt` was converted to: made the first time."""
    folder = cache_folder("clap") / identity
    if not folder.exists():
        convert(path, folder)
    return folder


def convert(source: Path, folder: Path, tokenizer: Path | None = None) -> Path:
    """Writes LAION's `.pt` as a folder in transformers' layout, atomically; `tokenizer` is RoBERTa's folder.

    Raises CheckpointError naming what cannot be used, RecipeError when `folder` exists already.
    """
    from milonga.scorers.laion_clap import convert_laion

    if folder.exists():
        raise RecipeError(f"{folder} exists already: name a new folder")
    words = _tokenizer(source, tokenizer)
    with atomic_dir(folder, replace=False) as part:  # another process may have made the same meanwhile
        convert_laion(source, part, words)
    return folder


def _tokenizer(source: Path, given: Path | None) -> Any:
    """RoBERTa's tokenizer: the given one, or the one beside the file, or the Hub's."""
    from transformers import AutoTokenizer

    folders = (source.parent / "tokenizer", source.parent)
    place = given or next((folder for folder in folders if (folder / "tokenizer.json").is_file()), TOKENIZER)
    try:
        return AutoTokenizer.from_pretrained(place, local_files_only=is_offline())
    except Exception as error:  # the Rust tokenizers raise bare Exceptions, the Hub its own
        raise CheckpointError(
            f"{place} holds no usable tokenizer ({brief(error)}): put RoBERTa's tokenizer.json beside {source}"
        ) from None
