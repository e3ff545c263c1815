"""The studio: takes as asked for, whatever is cancelled, killed or fails; decisions that last; what they teach."""

import sqlite3
import threading
import time
from zipfile import ZipFile

import numpy as np
import pytest
from pydantic import ValidationError
from small_studio import HOSTILE, RATE, Tones, small_studio, systems, until
from small_studio import edit as small_edit

from milonga.core.audio import clips_of, from_flac, read_samples, write_samples
from milonga.core.errors import AudioError, RecipeError, StoreError
from milonga.core.ids import clip_seed, content_id
from milonga.core.records import Prompt, Request
from milonga.core.store import Run
from milonga.core.web import FieldError, NotNow, Unknown
from milonga.listening_test.database import FILE
from milonga.listening_test.material import TARGET
from milonga.maths.clip_view import clip_view, loudness
from milonga.studio.clips import SCHEMA, Choice, Take, Takes
from milonga.studio.export import studio_labels, studio_pairs, studio_prompts
from milonga.studio.orders import Order
from milonga.studio.sounds import Sounds
from milonga.studio.studio import Studio
from milonga.studio.worker import System

TWO = ("nano", "runs/demo/aligned")


def tones(scheduler: str | None) -> Tones:
    return Tones()


def generated(studio: Studio, **order) -> list[Take]:
    """Takes of a request, after their generation."""
    state = studio.order(Order(**{"prompt": "a bell rings", "systems": TWO, "count": 2, "seed": 7} | order))
    studio.worker.start()
    until(lambda: not studio.takes.num_waiting())
    return studio.takes.of_prompt(state["prompt"]["id"])


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    """A studio with four takes of one prompt, which tests do not decide on."""
    studio = small_studio(tmp_path_factory.mktemp("studio") / "s")
    generated(studio)
    return studio


def test_takes_are_those_of_the_command_generate_one_variation_of_every_system_first(studio):
    takes = [one for one in studio.takes.all_generated() if one.prompt == "a bell rings"]
    assert [(one.system, one.number) for one in takes] == [(name, number) for number in (0, 1) for name in TWO]
    prompt = Prompt.of("a bell rings", "command line")
    for take in takes:
        asked = Request.of(7, prompt, prompt.text, 4, 3.0, take.number)
        asked = asked.model_copy(update={"seed": clip_seed(7, prompt.text, take.number)})
        [clip] = clips_of(Run(studio.folder).stage("generate").read_table(f"take-{take.id}")).values()
        [expected] = Tones().generate([asked])
        assert abs(clip.waveform - expected.waveform).max() < 1 / 32768
        assert loudness(from_flac(studio.sound(take.id).read_bytes())) == pytest.approx(TARGET, abs=0.1)


def test_what_is_there_is_not_made_again_and_other_weights_are_another_take(tmp_path):
    studio = small_studio(tmp_path / "s")
    first = generated(studio)
    files = {path: path.stat().st_mtime_ns for path in studio.folder.rglob("*.parquet")}
    assert generated(studio) == first
    assert {path: path.stat().st_mtime_ns for path in studio.folder.rglob("*.parquet")} == files
    again = Studio(studio.folder, [System("nano", "trained anew", 4, 3.0, tones)])
    assert len(generated(again, systems=("nano",))) == 6


@pytest.mark.parametrize(
    ("order", "field", "said"),
    [
        ({"prompt": " \n "}, "prompt", "The prompt is empty"),
        ({"prompt": "x" * 501}, "prompt", "500 are the limit"),
        ({"prompt": "a \ud800 bell"}, "prompt", "a lone surrogate"),
        ({"systems": ()}, "systems", "Choose a system"),
        ({"systems": ("nobody",)}, "systems", "Choose a system"),
        ({"count": 0}, "count", "Variations must be between 1 and 16"),
        ({"count": 17}, "count", "Variations must be"),
        ({"steps": 0}, "steps", "Steps must be between 1 and 1000"),
        ({"guidance": -1.0}, "guidance", "Guidance must be between 0 and 100"),
        ({"seed": -1}, "seed", "Seed must be"),
        ({"seed": 2**63}, "seed", "between 0 and 9223372036854775807"),
        ({"seconds": 1000.0}, "seconds", "Length must be between 0.1 and 120"),
        ({"scheduler": "zebra"}, "scheduler", "There is no scheduler 'zebra'"),
        ({"negative": "wind", "guidance": 1.0}, "negative", "needs guidance above 1"),
        ({"edit": "loop"}, "edit", "An edit of a take is"),
    ],
)
def test_what_cannot_be_made_is_told_at_its_field_and_nothing_is_wanted(studio, order, field, said):
    with pytest.raises(FieldError, match=said) as error:
        studio.order(Order(**{"prompt": "a dog", "systems": TWO} | order))
    assert error.value.field == field
    assert studio.takes.num_waiting() == 0


@pytest.mark.parametrize("field", [{"seed": True}, {"seed": "7"}, {"count": 1.5}, {"guidance": "3"}])
def test_a_number_is_a_number(field):
    with pytest.raises(ValidationError):
        Order(**{"prompt": "a dog", "systems": TWO} | field)


def test_the_queue_is_bounded_and_free_disk_is_watched(tmp_path, monkeypatch):
    studio = small_studio(tmp_path / "s")
    monkeypatch.setattr("milonga.studio.studio.MAX_WAITING", 3)
    studio.order(Order(prompt="a bell", systems=("nano",), count=2))
    with pytest.raises(RecipeError, match="The queue has 2 takes, and 3 are the limit"):
        studio.order(Order(prompt="a bell", systems=("nano",), count=2))
    monkeypatch.setattr("milonga.studio.studio.ROOM", 10**18)
    with pytest.raises(RecipeError, match="free on the disk"):
        studio.order(Order(prompt="a dog", systems=("nano",), count=1))
    assert studio.takes.num_waiting() == 2


def test_a_full_disk_costs_a_wait_and_not_the_clip(tmp_path, monkeypatch):
    studio, full, count = small_studio(tmp_path / "s"), threading.Event(), []
    write = studio.sounds.write

    def on_full_disk(*arguments):
        count.append(1)
        if not full.is_set():
            raise StoreError("no space left")
        write(*arguments)

    monkeypatch.setattr(studio.sounds, "write", on_full_disk)
    monkeypatch.setattr("milonga.studio.worker.PAUSE", 0.02)
    generations = []
    monkeypatch.setattr(Tones, "_one", lambda *a, _one=Tones._one: generations.append(1) or _one(*a))
    studio.order(Order(prompt="a bell", systems=("nano",)))
    studio.worker.start()
    until(lambda: len(count) > 2)
    assert studio.state()["trouble"] == "no space left"
    full.set()
    until(lambda: studio.takes.num_waiting() == 0)
    assert studio.state()["trouble"] == ""
    assert len(generations) == 1
    studio.worker.stop()


def test_two_studios_on_one_folder_share_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("milonga.studio.worker.PAUSE", 0.05)
    generations = []
    monkeypatch.setattr(Tones, "_one", lambda *a, _one=Tones._one: generations.append(a[1].id) or _one(*a))
    first, second = small_studio(tmp_path / "s", 0.01), small_studio(tmp_path / "s", 0.01)
    first.order(Order(prompt="a bell", systems=TWO, count=4))
    for studio in (first, second):
        studio.worker.start()
    until(lambda: first.takes.num_waiting() == 0)
    for studio in (first, second):
        studio.worker.stop()
    assert len(generations) == 8
    assert list((tmp_path / "s" / "claims").iterdir()) == []


def test_an_edit_changes_its_region_and_leaves_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr("milonga.models.editing.edit", small_edit)
    studio = small_studio(tmp_path / "s")
    [take] = generated(studio, systems=("nano",), count=1)
    more = {"source": take.id, "edit": "region", "start": 0.1, "stop": 0.3, "words": "a cat", "seed": 1}
    [edited] = [one for one in generated(studio, prompt="", systems=(), count=1, **more) if one.edit]
    assert (edited.prompt, edited.words, edited.system) == (take.prompt, "a cat", "nano")
    old, new = (studio.sounds.clip(one).waveform for one in (take, edited))
    first, last = round(0.1 * RATE), round(0.3 * RATE)
    assert (new[:first] == old[:first]).all()
    assert (new[last:] == old[last:]).all()
    assert not new[first:last].any()
    for wrong, field, said in (
        ({"start": 0.4, "stop": 0.9}, "start", "inside the clip, which has 0.50 s"),
        ({"start": None, "stop": None}, "start", "Drag on the waveform"),
        ({"edit": "continue", "start": None, "stop": None}, "seconds", "by how many seconds"),
        ({"edit": "loop", "start": None, "stop": None}, "edit", "A loop needs more than 1 s"),
        ({"strength": 2.0}, "strength", "Strength must be"),
    ):
        with pytest.raises(FieldError) as error:
            studio.order(Order(**more | wrong))
        assert error.value.field == field
        assert said in str(error.value)
    with pytest.raises(Unknown):
        studio.order(Order(**more | {"source": "../secret"}))


def test_a_file_is_a_take_to_start_from_and_its_edits_keep_its_format(tmp_path, monkeypatch):
    monkeypatch.setattr("milonga.models.editing.edit", small_edit)
    studio = small_studio(tmp_path / "s")
    samples = np.random.default_rng(0).integers(-(2**22), 2**22, (44100, 2)) / 2**23
    write_samples(tmp_path / "rain_on-tin.wav", samples, 44100, "PCM_24", {})
    data = (tmp_path / "rain_on-tin.wav").read_bytes()
    state = studio.upload("rain_on-tin.wav", "", data)
    assert state["prompt"]["text"] == "rain on tin"
    [card] = state["takes"]
    assert (card["system"], card["edit"], card["generated"], card["title"]) == (
        "upload",
        "upload",
        True,
        "rain_on-tin.wav",
    )
    assert studio.original(card["id"])[1] == data
    assert studio.upload("rain_on-tin.wav", "", data)["takes"] == [card]  # the same file is the same take
    more = {"source": card["id"], "edit": "region", "start": 0.25, "stop": 0.5, "systems": ("nano",), "seed": 1}
    [edited] = [one for one in generated(studio, prompt="", count=1, **more) if one.edit == "region"]
    name, data = studio.original(edited.id)
    (tmp_path / name).write_bytes(data)
    stored, rate, suffix, subtype = read_samples(tmp_path / name)
    assert (rate, suffix, subtype, stored.shape) == (44100, ".wav", "PCM_24", samples.shape)
    assert (stored[:11025] == samples[:11025]).all()
    assert (stored[22050:] == samples[22050:]).all()
    with pytest.raises(AudioError, match=r"notes.txt"):
        studio.upload("notes.txt", "", b"no audio at all")
    assert {path.stem for path in (studio.folder / "files").iterdir()} == {card["id"], edited.id}


def test_a_file_that_is_still_being_written_is_no_file_of_a_take(tmp_path):
    (tmp_path / "files").mkdir()
    unfinished = [f"{name}.wav.{number}-0123abcd.part" for name in ("half", "whole") for number in range(1, 9)]
    for name in (*unfinished, "whole.wav"):
        (tmp_path / "files" / name).write_text("x")
    sounds = Sounds(tmp_path)
    assert sounds.file("half") is None
    assert sounds.file("whole") == tmp_path / "files" / "whole.wav"
    assert sounds.file("none") is None


def test_what_the_player_shows_is_the_originals_level(studio):
    take = studio.takes.all_generated()[0]
    assert studio.view(take.id) == clip_view(studio.sounds.clip(take))
    assert studio.view(take.id)["lufs"] != pytest.approx(TARGET, abs=1)


def test_takes_are_renamed_deleted_restored_and_purged(tmp_path):
    studio = small_studio(tmp_path / "s")
    takes = generated(studio, systems=("nano",), count=3)
    studio.choose(takes[0].id, takes[1].id, "a")
    assert studio.rename(takes[0].id, " the  good one ")["takes"][0]["title"] == "the good one"
    assert studio.original(takes[0].id)[0].startswith("the-good-one-7-0-")
    assert [one["id"] for one in studio.delete(takes[0].id, True)["takes"]] == [one.id for one in takes[1:]]
    assert studio.takes.choices() == []
    assert len(studio.delete(takes[0].id, False)["takes"]) == 3
    assert len(studio.takes.choices()) == 1
    studio.delete(takes[0].id, True)
    assert studio.delete_prompt(takes[0].prompt_id, True)["prompt"] is None
    assert len(studio.delete_prompt(takes[0].prompt_id, False)["takes"]) == 3
    studio.delete(takes[0].id, True)
    again = small_studio(tmp_path / "s")
    again.purge()
    assert again.takes.get(takes[0].id) is None
    assert not [path for path in again.folder.rglob("*") if takes[0].id in path.name]
    assert len(again.takes.all_generated()) == 2


def test_the_history_is_searched_and_paged(tmp_path):
    studio = small_studio(tmp_path / "s")
    for number in range(25):
        studio.order(Order(prompt=f"sound {number}", systems=("nano",), seed=1))
    studio.order(Order(prompt="100 % rain", systems=("nano",), seed=1))
    page = studio.history()
    assert (page["total"], len(page["prompts"]), page["prompts"][0]["text"]) == (26, 20, "100 % rain")
    assert [one["text"] for one in studio.history(start=20)["prompts"]] == [f"sound {n}" for n in (5, 4, 3, 2, 1, 0)]
    assert [one["text"] for one in studio.history("% r")["prompts"]] == ["100 % rain"]
    assert studio.history("SOUND 1")["total"] == 11
    assert "prompts" not in studio.state()


def test_a_thousand_takes_are_compared_at_once(tmp_path):
    studio = small_studio(tmp_path / "s")
    takes = [Take.of("a bell", "nano", "w", 4, 3.0, 1, number) for number in range(1000)]
    studio.takes.add([take.model_copy(update={"generated": "now"}) for take in takes])
    begin = time.process_time()
    pair = studio.next_comparison(takes[0].prompt_id)
    assert pair["left"] == 999 * 500
    assert time.process_time() - begin < 1


def test_a_comparison_is_taken_back_and_returns(tmp_path):
    studio = small_studio(tmp_path / "s")
    prompt = generated(studio, systems=("nano",), count=3)[0].prompt_id
    first = studio.next_comparison(prompt)
    second = studio.choose(first["a"]["id"], first["b"]["id"], "a")
    studio.choose(second["a"]["id"], second["b"]["id"], "b")
    assert studio.undo_choice(prompt) == second
    assert studio.undo_choice(prompt) == first
    assert studio.takes.choices() == []
    with pytest.raises(NotNow, match="no comparison to undo"):
        studio.undo_choice(prompt)


def test_what_is_kept_is_a_zip_with_words_in_its_names(tmp_path):
    studio = small_studio(tmp_path / "s")
    takes = generated(studio, systems=("nano",), count=3)
    with pytest.raises(NotNow, match="nothing is kept"):
        studio.archive()
    studio.decide(takes[0].id, True)
    studio.decide(takes[1].id, False)
    with ZipFile(studio.archive(takes[0].prompt_id)) as file:
        assert file.namelist() == [f"a-bell-rings-7-0-{takes[0].id[:6]}.wav", "takes.csv"]
        assert file.read(file.namelist()[0]) == studio.original(takes[0].id)[1]
        assert b"a bell rings" in file.read("takes.csv")


def test_a_folder_of_an_earlier_version_is_read(tmp_path):
    old = sqlite3.connect(tmp_path / FILE)
    old.executescript(SCHEMA)
    take = Take.of("a bell", "nano", "w", 4, 3.0, 1)
    values = (take.id, take.prompt_id, "a bell", "nano", "w", 4, 3.0, 1, 0, "now", "", 1)
    columns = "id, prompt_id, prompt, system, weights, steps, guidance, seed, number, made, trouble, kept"
    old.execute(f"INSERT INTO takes ({columns}) VALUES ({', '.join('?' * 12)})", values)
    old.commit()
    old.close()
    assert Takes(tmp_path / FILE).all_generated() == [take.model_copy(update={"generated": "now", "keep": True})]
    assert take.id == content_id(
        "nano", "w", content_id(take.prompt_id, "a bell", 4, 3.0, 0), 1
    )  # ids have not changed


def test_a_system_that_cannot_be_loaded_is_told_on_its_takes_and_the_others_are_made(tmp_path):
    studio = small_studio(tmp_path / "s")
    takes = generated(studio, systems=("lost", "nano"), count=1)
    assert [(one.generated is None, one.trouble) for one in takes] == [
        (True, "runs/lost/unet holds no usable model: make it again"), (False, ""),
    ]  # fmt: skip
    with pytest.raises(NotNow, match="not generated yet"):
        studio.decide(takes[0].id, True)
    studio.systems["lost"] = System("lost", "w3", 4, 3.0, tones)  # it is there again
    studio.retry(takes[0].id)
    until(lambda: studio.takes.get(takes[0].id).generated is not None)


def test_cancelling_a_prompt_ends_its_take_at_the_next_step_and_leaves_other_prompts_alone(tmp_path):
    stepped, go_on = threading.Event(), threading.Event()

    class Held(Tones):
        def generate(self, requests, on_step=None):
            def step(done: int) -> None:
                stepped.set()
                go_on.wait(60)
                on_step(done)

            return super().generate(requests, step)

    studio = Studio(tmp_path / "s", [System("nano", "w", 4, 3.0, lambda scheduler: Held())])
    state = studio.order(Order(prompt="a bell", systems=("nano",), count=3, seed=1))
    studio.order(Order(prompt="rain", systems=("nano",), count=1, seed=1))
    studio.worker.start()
    assert stepped.wait(60)
    assert studio.state()["current"] | {"id": ""} == {
        "id": "", "step": 0, "steps": 4, "loading": False, "prompt": "a bell",
    }  # fmt: skip
    studio.cancel(state["prompt"]["id"])
    go_on.set()
    until(lambda: len(studio.takes.all_generated()) == 1)  # the other prompt goes on
    cards = studio.state(state["prompt"]["id"])["takes"]
    assert [card["trouble"] for card in cards] == ["cancelled"] * 3  # and nothing has vanished
    assert len(list(studio.folder.rglob("*.parquet"))) == 1
    studio.retry(cards[0]["id"])
    until(lambda: len(studio.takes.all_generated()) == 2)


def test_takes_are_ranked_within_their_prompt_by_the_studios_scorers(tmp_path):
    studio = small_studio(tmp_path / "s")
    takes = generated(studio, systems=("nano",), count=5)
    generated(studio, systems=("nano",), count=2, prompt="rain")
    cards = studio.state(takes[0].prompt_id)["takes"]
    pitch = {take.id: 200 + take.request().seed % 1500 for take in takes}
    assert [card["id"] for card in sorted(cards, key=lambda card: card["rank"])] == sorted(pitch, key=pitch.__getitem__)
    assert sorted(card["rank"] for card in cards) == [1, 2, 3, 4, 5]
    assert studio.state()["scorers"] == ["low"]
    assert sorted(card["rank"] for card in studio.state()["takes"]) == [1, 2]
    without = Studio(studio.folder, systems())
    assert {card["rank"] for card in without.state()["takes"]} == {None}
    assert without.state()["scorers"] == []


def test_takes_from_before_a_scorer_have_no_rank_and_a_scorer_that_fails_says_so(tmp_path):
    plain = Studio(tmp_path / "s", systems())
    generated(plain, systems=("nano",), count=1)

    class Broken:
        name = "broken"

        def score(self, clips, texts):
            raise ValueError("no ears")

    studio = small_studio(tmp_path / "s")
    assert [card["rank"] for card in studio.state()["takes"]] == [None]
    generated(studio, systems=("nano",), count=2)
    assert [card["rank"] for card in studio.state()["takes"]] == [None, 1]
    broken = Studio(tmp_path / "s", systems(), [Broken()])
    broken.order(Order(prompt="a bell rings", systems=("nano",), count=3, seed=7))
    broken.worker.start()
    until(lambda: broken.state()["takes"][2]["trouble"])
    assert "no ears" in broken.state()["takes"][2]["trouble"]


def test_takes_of_a_system_that_is_not_offered_wait_for_it(tmp_path):
    studio = small_studio(tmp_path / "s")
    studio.order(Order(prompt="a bell", systems=TWO, count=1))
    other = Studio(studio.folder, [one for one in systems() if one.name == "nano"])
    other.worker.start()
    until(lambda: len(other.takes.all_generated()) == 1)
    assert [(one["system"], one["generated"], one["offered"]) for one in other.state()["takes"]] == [
        ("nano", True, True), ("runs/demo/aligned", False, False),
    ]  # fmt: skip


def test_two_and_two_are_compared_until_none_are_left_and_never_a_discarded_one(tmp_path):
    studio = small_studio(tmp_path / "s")
    takes = generated(studio, count=2)
    prompt = takes[0].prompt_id
    studio.decide(takes[3].id, False)
    seen = []
    pair = studio.next_comparison(prompt)
    while pair["left"]:
        two = (pair["a"]["id"], pair["b"]["id"])
        seen.append(frozenset(two))
        pair = studio.choose(*two, "same" if len(seen) == 2 else "a")
    assert len(set(seen)) == len(seen) == 3
    assert not any(takes[3].id in two for two in seen)
    assert sorted(one.better == "" for one in studio.takes.choices()) == [False, False, True]
    with pytest.raises(NotNow, match="of one prompt"):
        studio.choose(takes[0].id, takes[0].id, "a")
    with pytest.raises(NotNow, match="a, b or same"):
        studio.choose(takes[0].id, takes[1].id, "c")
    with pytest.raises(Unknown):
        studio.choose(takes[0].id, "../test.json", "a")


def test_a_wav_to_save_is_the_clip_as_it_came_with_its_making(studio, tmp_path):
    from milonga.core.audio import read_audio, read_tags

    take = studio.takes.all_generated()[0]
    name, data = studio.original(take.id)
    (tmp_path / name).write_bytes(data)
    tags = read_tags(tmp_path / name)
    assert tags == {
        "prompt": "a bell rings", "model": "nano", "seed": "7", "number": "0", "steps": "4", "guidance": "3.0",
    }  # fmt: skip
    assert read_audio(tmp_path / name).rate == RATE
    odd = generated(small_studio(tmp_path / "odd"), prompt="🔔" * 500, systems=("nano",), count=1)
    assert small_studio(tmp_path / "odd").original(odd[0].id)[1][:4] == b"RIFF"  # tags of a long prompt fit


def decided(number: int, keep: bool | None = None, text: str = HOSTILE) -> Take:
    return Take.of(text, "nano", "w", 4, 3.0, 1, number).model_copy(update={"generated": "now", "keep": keep})


def test_decisions_become_labels_and_pairs_by_the_stated_rule():
    good, fine, bad, open_ = decided(0, True), decided(1, True), decided(2, False), decided(3)
    elsewhere = decided(0, False, "another prompt")
    takes = [good, fine, bad, open_, elsewhere]
    assert {(one.id, one.desirable) for one in studio_labels(takes)} == {
        (good.id, True), (fine.id, True), (bad.id, False), (elsewhere.id, False),
    }  # fmt: skip
    assert {one.text for one in studio_prompts(takes)} == {HOSTILE, "another prompt"}

    def choice(winner: Take, other: Take, better: str | None = None) -> Choice:
        low, high = sorted((winner.id, other.id))
        return Choice(a=low, b=high, better=winner.id if better is None else better)

    said = [choice(open_, good), choice(bad, fine), choice(open_, fine, "")]
    pairs = studio_pairs(takes, said)
    kept = {(one.chosen_id, one.rejected_id) for one in pairs if not one.refused}
    assert kept == {(good.id, bad.id), (open_.id, good.id)}
    refused = {frozenset((one.chosen_id, one.rejected_id)): one.refused for one in pairs if one.refused}
    assert refused == {
        frozenset((fine.id, bad.id)): "contradiction: the preferred take was discarded and the other kept",
        frozenset((fine.id, open_.id)): "order: neither was better",
    }
    assert {name for one in pairs for name in (*one.chosen_scores, *one.rejected_scores)} == {"human_preference"}
    assert all(one.chosen_seed == Take.request(good).seed for one in pairs if one.chosen_id == good.id)


def test_a_decision_can_be_taken_back(tmp_path):
    studio = small_studio(tmp_path / "s")
    take = generated(studio, systems=("nano",), count=1)[0]
    for keep in (True, False, None):
        assert studio.decide(take.id, keep)["takes"][0]["keep"] is keep
        assert small_studio(tmp_path / "s").takes.get(take.id).keep is keep
