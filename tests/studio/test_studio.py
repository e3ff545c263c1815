"""The studio: takes as asked for, whatever is cancelled, killed or fails; decisions that last; what they teach."""

import threading

import pytest
from small_studio import HOSTILE, RATE, Tones, small_studio, systems, until

from milonga.core.audio import clips_of, from_flac
from milonga.core.errors import DataError, RecipeError
from milonga.core.ids import clip_seed
from milonga.core.records import Prompt, Request
from milonga.core.store import Run
from milonga.core.web import NotNow, Unknown
from milonga.listening_test.material import TARGET, loudness
from milonga.studio.clips import Choice, Take
from milonga.studio.export import studio_labels, studio_pairs, studio_prompts
from milonga.studio.studio import Order, Studio
from milonga.studio.worker import System

TWO = ("nano", "runs/demo/aligned")


def generated(studio: Studio, **order) -> list[Take]:
    """Takes of a request, after their generation."""
    state = studio.order(Order(**{"prompt": "a bell rings", "systems": TWO, "count": 2, "seed": 7} | order))
    studio.worker.start()
    until(lambda: not studio.takes.num_waiting())
    return studio.takes.of_prompt(state["prompt"])


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
        assert loudness(from_flac(studio.playback_file(take.id).read_bytes())) == pytest.approx(TARGET, abs=0.1)


def test_what_is_there_is_not_made_again_and_other_weights_are_another_take(tmp_path):
    studio = small_studio(tmp_path / "s")
    first = generated(studio)
    files = {path: path.stat().st_mtime_ns for path in studio.folder.rglob("*.parquet")}
    assert generated(studio) == first
    assert {path: path.stat().st_mtime_ns for path in studio.folder.rglob("*.parquet")} == files
    again = Studio(studio.folder, [System("nano", "trained anew", 4, 3.0, Tones)])
    assert len(generated(again, systems=("nano",))) == 6


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ({"prompt": " \n "}, "the prompt is empty"),
        ({"prompt": "x" * 501}, "the limit is 500"),
        ({"systems": ()}, "choose a system"),
        ({"systems": ("nobody",)}, "choose a system"),
        ({"count": 0}, "variations must be between 1 and 16"),
        ({"count": 17}, "variations must be"),
        ({"steps": 0}, "steps must be between 1 and 1000"),
        ({"guidance": -1.0}, "guidance must be between 0 and 100"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**63}, "seed must be"),
    ],
)
def test_what_cannot_be_made_is_told_and_nothing_is_wanted(studio, order, said):
    with pytest.raises((DataError, RecipeError), match=said):
        studio.order(Order(**{"prompt": "a dog", "systems": TWO} | order))
    assert studio.takes.num_waiting() == 0


def test_a_system_that_cannot_be_loaded_is_told_on_its_takes_and_the_others_are_made(tmp_path):
    studio = small_studio(tmp_path / "s")
    takes = generated(studio, systems=("lost", "nano"), count=1)
    assert [(one.generated is None, one.trouble) for one in takes] == [
        (True, "runs/lost/unet holds no usable model: make it again"), (False, ""),
    ]  # fmt: skip
    with pytest.raises(NotNow, match="not generated yet"):
        studio.decide(takes[0].id, True)
    studio.systems["lost"] = System("lost", "w3", 4, 3.0, Tones)  # it is there again
    studio.retry(takes[0].id)
    until(lambda: studio.takes.get(takes[0].id).generated is not None)


def test_cancelling_ends_the_take_that_is_being_made_at_its_next_step(tmp_path):
    stepped, go_on = threading.Event(), threading.Event()

    class Held(Tones):
        def generate(self, requests, on_step=None):
            def step(done: int) -> None:
                stepped.set()
                go_on.wait(60)
                on_step(done)

            return super().generate(requests, step)

    studio = Studio(tmp_path / "s", [System("nano", "w", 4, 3.0, Held)])
    studio.order(Order(prompt="a bell", systems=("nano",), count=3, seed=1))
    studio.worker.start()
    assert stepped.wait(60)
    assert studio.state()["current"]["steps"] == 4
    assert studio.cancel()["takes"] == []
    go_on.set()
    until(lambda: studio.worker.current() is None)
    assert studio.takes.all_generated() == []
    assert not list(studio.folder.rglob("*.parquet"))
    studio.order(Order(prompt="a bell", systems=("nano",), count=1, seed=1))  # and it can be asked for again
    until(lambda: len(studio.takes.all_generated()) == 1)


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
    name, data = studio.wav(take.id)
    (tmp_path / name).write_bytes(data)
    tags = read_tags(tmp_path / name)
    assert tags == {
        "prompt": "a bell rings", "model": "nano", "seed": "7", "number": "0", "steps": "4", "guidance": "3.0",
    }  # fmt: skip
    assert read_audio(tmp_path / name).rate == RATE
    odd = generated(small_studio(tmp_path / "odd"), prompt="🔔" * 500, systems=("nano",), count=1)
    assert small_studio(tmp_path / "odd").wav(odd[0].id)[1][:4] == b"RIFF"  # tags of a long prompt fit


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
