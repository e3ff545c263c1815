"""Examples in memory: the right rows, samples that depend on index and epoch alone, and parts that must fit."""

from collections.abc import Sequence

import pytest
import tiny_training as tiny
import torch

from milonga.core.errors import DataError
from milonga.data.examples import (
    CaptionedClips,
    ConcatExamples,
    Examples,
    GroupExamples,
    PairExamples,
    Subset,
    filter_by_strategy,
    fingerprint,
    train_val_split,
)
from milonga.models.denoiser import SECONDS, Conditioning, ConditioningRows, Posterior


def captions(states: torch.Tensor) -> Conditioning:
    """Encoded captions all of whose tokens count."""
    return Conditioning(states=states, mask=torch.ones(states.shape[:2], dtype=torch.bool))


def test_rows_come_in_the_order_asked_for() -> None:
    winners, losers, states = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 2), torch.randn(4, 3, 2)
    examples = PairExamples(winners.half(), losers, captions(states))
    batch = examples.batch([2, 0], epoch=5)
    assert len(examples) == 4
    assert torch.equal(batch.winner, winners.half().float()[[2, 0]])
    assert batch.loser is not None
    assert torch.equal(batch.loser, losers[[2, 0]])
    assert torch.equal(batch.conditioning["states"], states[[2, 0]])
    assert batch.conditioning["mask"].dtype == torch.bool


def test_samples_of_a_posterior_depend_on_seed_index_and_epoch_and_nothing_else() -> None:
    posterior = Posterior(torch.zeros(5, 2, 3, 3), torch.zeros(5, 2, 3, 3))
    whole = posterior.sample([0, 1, 2, 3, 4], seed=1, epoch=2)
    assert torch.equal(whole[[3, 1]], posterior.sample([3, 1], seed=1, epoch=2))
    for seed, epoch in ((1, 3), (2, 2)):
        assert not torch.equal(whole, posterior.sample([0, 1, 2, 3, 4], seed, epoch))


def test_samples_have_its_mean_and_spread_times_the_scale() -> None:
    posterior = Posterior(torch.full((1, 8, 64, 64), 3.0), torch.full((1, 8, 64, 64), -1.0), scale=0.5)
    sample = posterior.sample([0], seed=0, epoch=0)
    assert float(sample.mean()) == pytest.approx(1.5, abs=0.01)
    assert float(sample.std()) == pytest.approx(0.5 * 2.718281828**-0.5, rel=0.02)


def test_winners_and_losers_are_sampled_apart() -> None:
    same = Posterior(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4))
    batch = PairExamples(same, same, captions(torch.zeros(2, 1, 2))).batch([0, 1], 0)
    assert batch.loser is not None
    assert not torch.equal(batch.winner, batch.loser)


def test_parts_of_different_length_are_refused() -> None:
    with pytest.raises(DataError, match="differ in number"):
        PairExamples(torch.zeros(3, 1, 2, 2), None, captions(torch.zeros(2, 1, 2)))


def test_prior_clips_are_the_real_clips_or_an_error() -> None:
    assert tiny.pairs().num_prior == 4
    assert tiny.pairs().prior_batch([3], 0).loser is None
    with pytest.raises(DataError, match="no prior-preservation clips"):
        tiny.pairs(prior=False).prior_batch([0], 0)


def test_a_fingerprint_tells_pairs_by_their_prior_clips_too() -> None:
    latents, states = torch.ones(4, 1, 2, 2), torch.ones(4, 3, 2)
    clips = [PairExamples(torch.full((3, 1, 2, 2), value), None, captions(states[:3])) for value in (0.0, 9.0, 9.0)]
    none, zeros, nines, again = (
        fingerprint(PairExamples(latents, latents, captions(states), prior=prior)) for prior in (None, *clips)
    )
    assert len({none, zeros, nines}) == 3
    assert nines == again


def test_all_pairs_of_a_caption_are_on_one_side_of_a_split_whatever_their_clips_lengths() -> None:
    names = torch.arange(10.0).repeat_interleave(4)
    told = captions(names[:, None, None].expand(40, 3, 2)) | {SECONDS: torch.linspace(3.0, 8.0, 40)}
    latents = names[:, None, None, None].expand(40, 1, 2, 2)
    parts = train_val_split(PairExamples(latents, latents, Conditioning(told)), 0.2, seed=0)
    train, val = ([] if part is None else part.batch(range(len(part)), 0).winner[:, 0, 0, 0].tolist() for part in parts)
    assert (len(train), len(val)) == (32, 8)
    assert not set(train) & set(val)


def captioned(seed: int = 3) -> CaptionedClips:
    """Four clips with a posterior whose captions say index and epoch, encoded as the caption's length and digits."""

    def encode(texts: Sequence[str]) -> Conditioning:
        return captions(torch.tensor([[[float(len(text)), float(text[-1])]] for text in texts]))

    posterior = Posterior(torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 1, 2, 2), torch.full((4, 1, 2, 2), -8.0), 0.5)
    return CaptionedClips(posterior, lambda index, epoch: "x" * index + str(epoch), encode, seed)


def test_captioned_clips_have_their_own_captions_of_the_epoch() -> None:
    examples = captioned()
    assert (len(examples), examples.num_prior) == (4, 0)
    batch = examples.batch([3, 1], epoch=7)
    assert batch.loser is None
    assert batch.conditioning["states"][:, 0].tolist() == [[4.0, 7.0], [2.0, 7.0]]
    assert batch.conditioning["mask"].tolist() == [[True], [True]]
    assert batch.winner.shape == (2, 1, 2, 2)
    assert batch.winner.mean(dim=(1, 2, 3)).tolist() == pytest.approx([1.5, 0.5], abs=0.05)


def test_captioned_clips_are_sampled_by_seed_index_and_epoch_alone() -> None:
    examples, first = captioned(), captioned().batch([0, 1, 2, 3], 0).winner
    assert torch.equal(examples.batch([2], 0).winner[0], first[2])
    assert not torch.equal(examples.batch([2], 1).winner[0], first[2])
    assert not torch.equal(captioned(4).batch([2], 0).winner[0], first[2])


def test_captioned_clips_may_be_plain_latents() -> None:
    latents = torch.randn(4, 1, 2, 2).half()
    plain = CaptionedClips(latents, lambda *_: "", lambda texts: captions(torch.zeros(len(texts), 1, 2)))
    assert torch.equal(plain.batch([2, 0], 5).winner, latents.float()[[2, 0]])


def test_captioned_clips_have_no_prior_clips_beside_them() -> None:
    with pytest.raises(DataError, match="prior_weight = 0"):
        captioned().prior_batch([0], 0)


def examples_of(
    count: int = 600, winner: int = -1, loser: int = -1, state: int = -1, logvar: int = -1, weight: int = -1,
    caption: int = -1, seed: int = 0,
) -> list[Examples]:  # fmt: skip
    """Examples of each kind, in which the numbered one has another value."""
    rng = torch.Generator().manual_seed(5)
    latents = [torch.randn(count, 1, 2, 2, generator=rng).half() for _ in range(3)]
    states, weights = torch.randn(count, 1, 2, generator=rng), torch.rand(count, generator=rng)
    for tensor, place in zip((*latents, states, weights), (winner, loser, logvar, state, weight), strict=True):
        if place >= 0:
            tensor[place] += 1
    texts = [["a dog", f"a bell {n}{'!' * (n == caption)}"] for n in range(count)]
    pairs = PairExamples(latents[0], latents[1], captions(states), seed=seed, weights=weights)
    clips = CaptionedClips(Posterior(latents[0], latents[2], 0.5), texts, lambda some: captions(states), seed)
    groups = GroupExamples(latents[0].unflatten(0, (-1, 2)), torch.arange(count).reshape(-1, 2), captions(states[::2]))
    return [pairs, clips, groups, ConcatExamples([pairs], prior=clips), Subset(pairs, range(count - 1))]


@pytest.mark.parametrize("place", [0, 1, 301, 598])
def test_a_fingerprint_is_of_every_example_and_not_of_the_seed(place: int) -> None:
    plain = list(map(fingerprint, examples_of()))
    assert list(map(fingerprint, examples_of(seed=9))) == plain
    assert len(set(plain)) == 5
    seen = {
        "winner": "11111",
        "loser": "10011",
        "logvar": "01010",
        "state": "10011",
        "weight": "10011",
        "caption": "01010",
    }
    for part, changed in seen.items():
        prints = list(map(fingerprint, examples_of(**{part: place})))
        differ = "".join(str(int(one != other)) for one, other in zip(prints, plain, strict=True))
        if part == "state" and place % 2 == 0:
            changed = "10111"  # a group's caption
        assert differ == changed, part


def test_a_fingerprint_of_captions_does_not_depend_on_how_they_were_encoded() -> None:
    winners = torch.zeros(3, 1, 2, 2)

    def of(noise: float, texts: list[str] | None) -> str:
        return fingerprint(PairExamples(winners, winners, captions(torch.full((3, 1, 2), noise)), captions=texts))

    assert of(1.0, ["a", "b", "c"]) == of(1.001, ["a", "b", "c"]) != of(1.0, ["a", "b", "d"])
    assert of(1.0, None) != of(1.001, None)


def test_examples_of_ones_own_class_are_hashed_one_by_one() -> None:
    class Own:
        num_prior = 0

        def __init__(self, examples: Examples) -> None:
            self.batch, self.prior_batch, self._examples = examples.batch, examples.prior_batch, examples

        def __len__(self) -> int:
            return len(self._examples)

    first = fingerprint(Own(examples_of(300)[0]))
    assert first == fingerprint(Own(examples_of(300)[0])) != fingerprint(Own(examples_of(300, winner=299)[0]))


def test_groups_are_chosen_by_name_and_keep_their_order() -> None:
    winners, states = torch.arange(5.0).reshape(5, 1, 1, 1), torch.zeros(5, 3, 2)
    examples = PairExamples(winners, winners, captions(states), groups=["1", "2", "1", "3", "2"])
    chosen = filter_by_strategy(examples, ["2", "3"])
    assert len(chosen) == 3
    assert chosen.batch([0, 1, 2], 0).winner.flatten().tolist() == [1, 3, 4]
    with pytest.raises(DataError, match="no pair is of 4 or 5"):
        filter_by_strategy(examples, ["4", "5"])


def test_captions_are_padded_to_the_longest_of_their_batch_alone_and_known_by_the_same_hash() -> None:
    parts = []
    for length in (2, 5, 3):
        states, mask = torch.full((1, length, 4), float(length)), torch.ones(1, length, dtype=torch.bool)
        parts.append(Conditioning(states=states, mask=mask, seconds=torch.tensor([float(length)])))
    rows, padded = ConditioningRows(parts), Conditioning.concat(parts)
    ragged = PairExamples(torch.zeros(3, 1, 2, 2), None, rows)
    assert ragged.batch([0, 2], 0).conditioning["states"].shape == (2, 3, 4)
    assert ragged.batch([2, 0], 0).conditioning["mask"].tolist() == [[True] * 3, [True, True, False]]
    assert fingerprint(ragged) == fingerprint(PairExamples(torch.zeros(3, 1, 2, 2), None, padded))
    with pytest.raises(DataError, match="differ in number"):
        PairExamples(torch.zeros(2, 1, 2, 2), None, rows)
