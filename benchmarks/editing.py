"""What edits do on nano: `python benchmarks/editing.py [PART ...] [--captions 100] [--seed 0]`, whose output is tables.

Real clips of the world's `tune` captions are edited, and the tagger says which events are in them. Parts, all or by
name: `inpaint` (a span with its own caption, against the round trip through VAE and vocoder, and its seams), `continue`
(what follows the first sounds anew, from words for the last alone), `loop` (the seam), `strength` (the whole clip
towards another event), `timeline` (30 s, an event in each slot of 5 s), `cost` (processor seconds by length) and
`repair` (generated clips, against as many fresh takes; `--skip` leaves captions out before the first). A seam is the
largest change of energy and of the mel spectrum within 20 ms of a splice; the band is that of the untouched clips, at
the same places or at any.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

import milonga
from milonga.core.ids import clip_seed, derive_seed
from milonga.core.records import Clip, Event, Prompt
from milonga.data.captions import world_prompts
from milonga.experiment.registry import DEFAULT as registry
from milonga.maths.mel import MelSettings, mel_matrix, normalise
from milonga.maths.metrics import exact_match, extra_events
from milonga.maths.statistics import Interval, paired, proportion
from milonga.models import editing
from milonga.models.tango_denoiser import TangoDenoiser
from milonga.nano.captions import caption
from milonga.nano.world import CLASSES, render

WINDOW, STEP, REACH = 0.02, 0.005, 0.02  # seconds: of each side of a seam, between its measurements, around a splice
SLOT, SLOTS = 5.0, 6


class Lab:
    """Nano with its tagger, and the clips that are edited: sequences, whose events do not overlap."""

    def __init__(self, captions: int, seed: int, skip: int = 0) -> None:
        self.pipe, self.seed = milonga.load("nano"), seed
        self.pipe.set_progress_bar_config(disable=True)
        self.denoiser, self.tagger = TangoDenoiser.of(self.pipe), registry.tagger("nano-tagger")
        self.rate = self.pipe.sampling_rate
        self.prompts = [prompt for prompt in world_prompts("tune", 4 * captions) if len(prompt.scene or ()) > 1][
            :captions
        ]
        self.any_prompts = world_prompts("tune", skip + captions)[skip:]

    def real(self, prompt: Prompt) -> tuple[np.ndarray, tuple[Event, ...]]:
        """A clip of the world (samples,) and the truth about its events."""
        sounding = render(prompt.scene or (), derive_seed(self.seed, "editing", prompt.id))
        return normalise(sounding.clip.waveform), sounding.events

    def edit(self, wave: np.ndarray, words: str, **change) -> np.ndarray:
        """An edit by the model's own steps and guidance, seeded by its words."""
        return self.pipe.edit(wave, words, seeds=self.seed, **change).audios[0].astype(np.float32)

    def round_trip(self, wave: np.ndarray) -> np.ndarray:
        """The clip through VAE and vocoder, at its own level."""
        latents, gain = editing.encode(self.denoiser, wave - wave.mean())
        return editing.decode(self.denoiser, latents[None])[0] / gain

    def labels(self, wave: np.ndarray) -> set[str]:
        """The classes that the tagger detects."""
        return {event.label for event in self.tagger.detect([Clip(wave.astype(np.float32), self.rate)])[0]}

    def seams_anywhere(self, prompt: Prompt, wave: np.ndarray) -> list[tuple[float, float]]:
        """Those at three places of an untouched clip that nothing chose, half a second from its ends."""
        rng = np.random.default_rng(derive_seed(self.seed, "place", prompt.id))
        places = rng.integers(self.rate // 2, len(wave) - self.rate // 2, 3)
        return [self.seam(wave, int(place)) for place in places]

    def seam(self, wave: np.ndarray, place: int) -> tuple[float, float]:
        """The largest change of energy (dB) and of the log-mel spectrum (root mean square over bands, in nats)."""
        mel = mel_matrix(MelSettings(rate=self.rate, fft=round(WINDOW * self.rate))).numpy()
        size, reach, step = (round(seconds * self.rate) for seconds in (WINDOW, REACH, STEP))
        jumps, fluxes = [], []
        for at in range(max(size, place - reach), min(len(wave) - size, place + reach) + 1, step):
            before, after = wave[at - size : at], wave[at : at + size]
            energy = [10 * np.log10(np.mean(part**2) + 1e-8) for part in (before, after)]
            spectra = [np.log(mel @ np.abs(np.fft.rfft(part * np.hanning(size))) + 1e-3) for part in (before, after)]
            jumps.append(abs(energy[1] - energy[0]))
            fluxes.append(np.sqrt(np.mean((spectra[1] - spectra[0]) ** 2)))
        return max(jumps), max(fluxes)


def share(values: Sequence[bool]) -> str:
    interval: Interval = proportion(np.array(values, dtype=float))
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}] | {interval.n}"


def within(edited: Sequence[tuple[float, float]], untouched: Sequence[tuple[float, float]], name: str) -> Iterator[str]:
    """Rows: the share of seams inside the central 95 % of the untouched ones, and of those above it.

    Above it lies what could be heard as a cut.
    """
    for number, what in enumerate(("energy", "spectral flux")):
        low, high = np.quantile([row[number] for row in untouched], [0.025, 0.975])
        values = [row[number] for row in edited]
        yield f"| {name}: {what} within the 95 % band | {share([low <= value <= high for value in values])} |"
        yield f"| {name}: {what} above the band | {share([value > high for value in values])} |"


def inpaint(lab: Lab) -> Iterator[str]:
    """One event's span is painted anew with the clip's caption; the other events should stay."""
    shares: dict[str, list[bool]] = {}
    edited_seams, real_seams = [], []
    for prompt in lab.prompts:
        wave, events = lab.real(prompt)
        groups = sorted(
            {(event.offset, tuple(e.label for e in events if e.offset == event.offset)) for event in events}
        )
        chosen = groups[derive_seed(lab.seed, "span", prompt.id) % len(groups)][1]
        first = min(event.onset for event in events if event.label in chosen)
        last = max(event.offset for event in events if event.label in chosen)
        edited = lab.edit(wave, prompt.text, region=(first, last))
        others = [event.label for event in events if event.label not in chosen]
        for name, sound in (("untouched", wave), ("round trip", lab.round_trip(wave)), ("inpainted", edited)):
            labels = lab.labels(sound)
            shares.setdefault(f"other events detected, {name}", []).extend(label in labels for label in others)
            shares.setdefault(f"events of the span detected, {name}", []).extend(label in labels for label in chosen)
        for place in (round(first * lab.rate), round(last * lab.rate)):
            edited_seams.append(lab.seam(edited, place))
            real_seams.append(lab.seam(wave, place))
    yield from (f"| {name} | {share(values)} |" for name, values in sorted(shares.items()))
    yield from within(edited_seams, real_seams, "splices")


def continuation(lab: Lab) -> Iterator[str]:
    """What follows the first group is cut off and made anew from words for the last group alone."""
    shares: dict[str, list[bool]] = {}
    edited_seams, real_seams, anywhere = [], [], []
    for prompt in lab.prompts:
        wave, events = lab.real(prompt)
        last = (prompt.scene or ((),))[-1]
        place = round(min(event.onset for event in events if event.label in last) * lab.rate)
        words = caption((last,), None, np.random.default_rng(derive_seed(lab.seed, "words", prompt.id)))
        edited = lab.edit(wave[:place], words, extend=(len(wave) - place) / lab.rate)
        for name, sound in (("real", wave), ("continued", edited)):
            labels, after = lab.labels(sound), lab.labels(sound[place:])
            before = [event.label for event in events if event.label not in last]
            shares.setdefault(f"events before detected, {name}", []).extend(label in labels for label in before)
            shares.setdefault(f"named event in the continuation, {name}", []).extend(label in after for label in last)
        edited_seams.append(lab.seam(edited, place))
        real_seams.append(lab.seam(wave, place))
        anywhere += lab.seams_anywhere(prompt, wave)
    yield from (f"| {name} | {share(values)} |" for name, values in sorted(shares.items()))
    yield from within(edited_seams, real_seams, "splices, against the onsets that were cut off")
    yield from within(edited_seams, anywhere, "splices, against any place")


def loops(lab: Lab) -> Iterator[str]:
    """The end leads into the beginning: events stay, and the seam is as smooth as the middle of untouched clips."""
    shares: dict[str, list[bool]] = {}
    raw, edited_seams, splices, real_seams = [], [], [], []
    for prompt in lab.prompts:
        wave, _ = lab.real(prompt)
        edited = lab.edit(wave, prompt.text, loop=True)
        half, reach = len(wave) // 2, round(editing.SEAM / 2 * lab.rate)
        raw.append(lab.seam(np.roll(wave, half), half))
        edited_seams.append(lab.seam(np.roll(edited, half), half))
        splices += [lab.seam(np.roll(edited, half), place) for place in (half - reach, half + reach)]
        real_seams += lab.seams_anywhere(prompt, wave)
        for name, sound in (("untouched", wave), ("loop", edited)):
            labels = lab.labels(sound)
            shares.setdefault(f"events detected, {name}", []).extend(
                label in labels for group in prompt.scene or () for label in group
            )
    yield from (f"| {name} | {share(values)} |" for name, values in sorted(shares.items()))
    for name, seams in (("joint before", raw), ("joint after", edited_seams), ("splices", splices)):
        yield from within(seams, real_seams, name)


def strengths(lab: Lab) -> Iterator[str]:
    """The whole clip is edited towards another event: what stays of its own, and what comes of the words."""
    for strength in (0.2, 0.4, 0.6, 0.8, 1.0):
        own, new = [], []
        for prompt in lab.prompts:
            wave, events = lab.real(prompt)
            rng = np.random.default_rng(derive_seed(lab.seed, "other", prompt.id))
            other = str(rng.choice([label for label in CLASSES if label not in {event.label for event in events}]))
            labels = lab.labels(lab.edit(wave, caption(((other,),), None, rng), strength=strength))
            own += [event.label in labels for event in events]
            new.append(other in labels)
        yield f"| strength {strength:g}: the clip's events detected | {share(own)} |"
        yield f"| strength {strength:g}: the event of the words detected | {share(new)} |"


def timeline(lab: Lab) -> Iterator[str]:
    """30 s with an event in each slot: detected in its slot, and elsewhere."""
    inside, outside, together = [], [], []
    rng = np.random.default_rng(derive_seed(lab.seed, "timeline"))
    for number in range(max(1, len(lab.prompts) // SLOTS)):
        labels = rng.permutation(CLASSES)[:SLOTS].tolist()
        parts = [
            f"{place * SLOT:g}-{(place + 1) * SLOT:g} {caption(((label,),), None, rng).rstrip('.')}"
            for place, label in enumerate(labels)
        ]
        wave = lab.pipe(timeline="; ".join(parts), seeds=[clip_seed(lab.seed, "timeline", number)]).audios[0]
        slots = [lab.labels(part) for part in np.split(wave, SLOTS)]
        inside += [label in slot for label, slot in zip(labels, slots, strict=True)]
        together.append(all(inside[-SLOTS:]))
        for place, slot in enumerate(slots):
            far = {label for at, label in enumerate(labels) if abs(at - place) > 1}
            outside.append(bool(far & slot))
    yield f"| event detected in its slot | {share(inside)} |"
    yield f"| all six in their slots | {share(together)} |"
    yield f"| an event of another slot, not the next, detected in a slot | {share(outside)} |"


def cost(lab: Lab) -> Iterator[str]:
    """Processor seconds of a clip by its length, and rows that pass the network: two a window and step."""
    passed: list[int] = []
    lab.pipe("rain", seeds=0)
    hook = lab.pipe.unet.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
    for seconds in (4.096, 15.0, 30.0, 60.0):
        passed.clear()
        start = time.process_time()
        lab.pipe("rain falls", seeds=0, audio_length_in_s=seconds)
        yield f"| {seconds:g} s: processor seconds | {time.process_time() - start:.2f} | {sum(passed)} |"
    hook.remove()


def repair(lab: Lab) -> Iterator[str]:
    """Generated clips, repaired with 4 takes of each fault, against the best of as many fresh takes by the same scorer.

    The scorer is nano's events, whose tagger is another than the one that judges here.
    """
    scorer = registry.scorer("nano-events")
    exact: list[tuple[bool, bool, bool]] = []
    extra: list[tuple[int, int, int]] = []
    attempts, takes = Counter[tuple[str, bool]](), list[int]()
    for prompt in lab.any_prompts:
        result = milonga.repair(
            clip := lab.pipe(prompt.text, seeds=[clip_seed(lab.seed, prompt.text, 0)]).audios[0],
            prompt.text, lab.pipe, scorer=scorer, best_of=4, seed=lab.seed,
        )  # fmt: skip
        takes.append(sum(attempt.takes for attempt in result.attempts))
        fresh = [
            lab.pipe(prompt.text, seeds=[clip_seed(lab.seed, prompt.text, number + 1)]).audios[0]
            for number in range(takes[-1])
        ]
        pool = [Clip(wave, lab.rate) for wave in (clip, *fresh)]
        best = pool[int(scorer.score(pool, [prompt.text] * len(pool)).argmax())]
        repaired = Clip(result.samples[:, 0].astype(np.float32), lab.rate)
        events, scene = lab.tagger.detect([pool[0], repaired, best]), prompt.scene or ()
        exact.append((exact_match(scene, events[0]), exact_match(scene, events[1]), exact_match(scene, events[2])))
        extra.append((extra_events(scene, events[0]), extra_events(scene, events[1]), extra_events(scene, events[2])))
        attempts.update((attempt.fault.kind, not attempt.refused) for attempt in result.attempts)
    for place, name in enumerate(("untouched", "repaired", "best of as many fresh takes")):
        yield f"| exact match, {name} | {share([row[place] for row in exact])} |"
        yield f"| extra events, {name} | {np.mean([row[place] for row in extra]):.3f} | {len(extra)} |"
    for a, b, name in ((1, 0, "repaired − untouched"), (1, 2, "repaired − fresh takes")):
        columns = [np.array([float(row[place]) for row in exact]) for place in (a, b)]
        gap = paired(*columns, seed=lab.seed)
        yield f"| exact match, {name} | {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}], p {gap.p:.3f} | {gap.n} |"
    for (kind, accepted), count in sorted(attempts.items()):
        yield f"| {kind}, {'accepted' if accepted else 'not accepted'} | {count} | {sum(attempts.values())} |"
    yield f"| takes of a clip | {np.mean(takes):.2f} | {len(takes)} |"
    for outcome, count in sorted(Counter(exact).items()):
        yield f"| exact match untouched, repaired, fresh: {outcome} | {count} | {len(exact)} |"


PARTS: dict[str, Callable[[Lab], Iterator[str]]] = {
    "inpaint": inpaint, "continue": continuation, "loop": loops, "strength": strengths, "timeline": timeline,
    "cost": cost, "repair": repair,
}  # fmt: skip


def main() -> None:
    """Prints a table for each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--captions", type=int, default=100)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lab = Lab(arguments.captions, arguments.seed, arguments.skip)
    for name in arguments.parts or PARTS:
        print(f"\n{name}\n\n| what | value | n |\n|---|---|---|", flush=True)
        for row in PARTS[name](lab):
            print(row, flush=True)


if __name__ == "__main__":
    main()
