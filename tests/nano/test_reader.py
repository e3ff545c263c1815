"""The reader: what people write about known sounds is read rightly, and everything else is left alone."""

import os
from pathlib import Path

import numpy as np
import pytest

from milonga.core.errors import DataError
from milonga.data.captions import caption_texts
from milonga.nano import reader
from milonga.nano.captions import caption
from milonga.nano.lexicon import CLASSES
from milonga.nano.reader import read_scene
from milonga.nano.vocabulary import KNOWN

SHAPES = [(1,), (2,), (3,), (1, 1), (1, 2), (2, 1), (1, 1, 1)]
AUDIOCAPS = Path(os.environ.get("MILONGA_AUDIOCAPS", Path(__file__).parents[3] / "shared" / "data" / "audiocaps"))

READ = [
    ("A dog barks then a bell rings", (("Dog",), ("Bell",))),
    ("A bell rings after a dog runs away", None),
    ("A bell ringing after a dog barking", (("Dog",), ("Bell",))),
    ("After a dog barks, a bell rings", (("Dog",), ("Bell",))),
    ("Before a bell rings, a dog barks twice", (("Dog",), ("Bell",))),
    ("A kid talking prior to a phone ringing", (("Child speaking",), ("Telephone",))),
    ("Rain pours onto a tin roof, followed closely by rumbling thunder", (("Rain",), ("Thunder",))),
    ("A train passes by after an adult male talks, then a siren wails", (("Man speaking",), ("Train",), ("Siren",))),
    ("First a clock ticks, then a cat meows and finally a frog croaks", (("Clock",), ("Cat",), ("Frog",))),
    ("An adult female speaks with birds tweeting in the background", (("Woman speaking", "Bird"),)),
    ("A man and a woman talking as an engine idles", (("Man speaking", "Woman speaking", "Engine"),)),
    ("Waves crash, wind blows and a boy speaks", (("Waves", "Wind", "Child speaking"),)),
    ("While water trickles, someone types on a keyboard", (("Water", "Keyboard"),)),
    ("Birds chirping and tweeting nearby", (("Bird",),)),
    ("The man's voice followed by gun shots and applause", (("Man speaking",), ("Gunshot", "Applause"))),
    ("Wind blowing into a microphone", (("Wind",),)),
    ("A vehicle engine revving up several times", (("Engine",),)),
    ("Someone knocks on a wooden door and walks away", (("Knock", "Footsteps"),)),
    ("An ambulance siren goes off", (("Siren",),)),
    ("A person walking on gravel", (("Footsteps",),)),
    ("A dog", None),
    ("A dog growls", None),
    ("A baby talks", None),
    ("People talking", None),
    ("Someone speaks", None),
    ("A man speaks and then laughs", None),
    ("A man speaking to a dog", None),
    ("A train horn blows", None),
    ("A horn honks while a train passes", None),
    ("A man and a dog barking", None),
    ("A dog barks and then is quiet", None),
    ("A dog barks, a bell rings", None),
    ("A dog barks, a bell rings, then a man speaks", None),
    ("A man speaks, then a dog barks, then the man speaks", None),
    ("A dog barks then a bell rings with rain in the background", None),
    ("A dog barks, a cat meows, a bell rings and wind blows", None),
    ("A dog barks after a bell rings after a cat meows", None),
    ("A bicycle bell rings", None),
    ("As a dog barks", (("Dog",),)),
    ("", None),
    ("...", None),
    ("then", None),
]


@pytest.mark.parametrize(("text", "scene"), READ)
def test_sentences(text, scene):
    assert read_scene(text) == scene


def test_the_vocabulary_knows_every_class():
    assert set(KNOWN) == set(CLASSES)


def sets(scene):
    return None if scene is None else [set(group) for group in scene]


@pytest.mark.slow
def test_the_grammar_is_read_back():
    rng = np.random.default_rng(11)
    wrong = []
    for _ in range(3000):
        labels = iter(rng.permutation(list(CLASSES)))
        shape = SHAPES[int(rng.integers(len(SHAPES)))]
        scene = tuple(tuple(str(next(labels)) for _ in range(size)) for size in shape)
        counts = {label: int(rng.integers(1, 4)) for group in scene for label in group if rng.random() < 0.3}
        text = caption(scene, counts, rng)
        if sets(read_scene(text)) != sets(scene):
            wrong.append((text, scene))
    assert len(wrong) <= 30, wrong[:5]


def test_what_is_read_wrongly_is_never_another_scene():
    """A caption of the grammar may go unread, but is not read as something else."""
    rng = np.random.default_rng(12)
    for label in CLASSES:
        for other in CLASSES:
            if label != other:
                text = caption(((label,), (other,)), None, rng)
                assert read_scene(text) in (None, ((label,), (other,))), text


def read_captions(path: Path) -> list:
    return reader.read_captions(caption_texts(path, ["caption"]), path.name)


def table(folder: Path, text: str) -> Path:
    path = folder / "captions.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_gives_each_known_caption_once(tmp_path):
    rows = 'audiocap_id,youtube_id,start_time,caption\n1,a,0,A dog barks\n2,b,0,"Zithers, loud"\n3,c,0,A dog barks \n'
    prompts = read_captions(table(tmp_path, rows))
    assert [(p.text, p.scene, p.source) for p in prompts] == [("A dog barks", (("Dog",),), "captions.csv")]


def test_the_short_table_of_the_test_subset_is_read(tmp_path):
    (prompt,) = read_captions(table(tmp_path, 'clip,caption,audioset_labels\nx_0,A cat meows,"/m/1,/m/2"\n'))
    assert prompt.scene == (("Cat",),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("clip,text\na,b\n", "no column `caption` .it has: clip, text"),
        ("clip,caption\na,\n", "line 2: the caption is empty"),
        ("clip,caption\na\n", "line 2: 1 cell where the header has 2; add the missing"),
    ],
)
def test_a_broken_table_is_told_in_one_line(tmp_path, text, message):
    path = table(tmp_path, text)
    with pytest.raises(DataError, match=message) as caught:
        read_captions(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_utf8_or_not_there(tmp_path):
    path = tmp_path / "latin.csv"
    path.write_bytes("clip,caption\na,Caf\xe9\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_captions(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_captions(tmp_path / "missing.csv")


@pytest.mark.skipif(not AUDIOCAPS.is_dir(), reason="the AudioCaps tables are not beside the checkout")
def test_hundreds_of_real_test_captions_are_read():
    prompts = read_captions(AUDIOCAPS / "test.csv")
    assert len(prompts) >= 400
    assert len({label for p in prompts for group in p.scene or () for label in group}) >= 20
