"""`listen fit` on nano: simulated raters of generated clips, predicted by a fitted scorer and by each CLAP.

    python benchmarks/fit.py            # 400 clips of 100 captions of `tune` to learn from, as many others, seed 0

A rater's mark of a clip is how well its events match the caption (`events:nano-tagger`, which shares nothing with the
CLAPs), in the rater's own mean and spread, with noise as large as the differences between clips. The fit sees marks
alone. It prints the report of `listen fit`; then, on clips of other captions by other raters, how well the scorer and
each CLAP predict these raters and the truth, with 95 % intervals; and what it says of too few captions.
"""

import argparse

import numpy as np

import milonga
from milonga.core.errors import DataError
from milonga.core.records import Clip
from milonga.data.captions import world_prompts
from milonga.listening_test.fit import BATCH, Judgements, learn
from milonga.maths.agreement import Opinions, clip_agreement
from milonga.scorers.fitted import feature_rows
from milonga.scorers.load import scorer

CLAPS = ("nano-clap-a", "nano-clap-b")
STEPS = (1, 2, 4, 8)  # the clips of a caption differ in quality


def judged(clips: int, raters: int, each: int, worth: np.ndarray, rng: np.random.Generator) -> list:
    """Rows (clip, rater, mark): every clip by `each` of the raters."""
    mean, spread = rng.normal(size=raters), rng.uniform(0.5, 1.5, raters)
    return [
        (clip, f"r{rater}", float(mean[rater] + spread[rater] * (worth[clip] + rng.normal())))
        for clip in range(clips)
        for rater in rng.choice(raters, each, replace=False)
    ]


def main() -> None:
    """Learns on one half, and predicts the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=100, help="to learn from; as many others are predicted")
    parser.add_argument("--raters", type=int, default=20)
    parser.add_argument("--each", type=int, default=4, help="raters a clip")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, embedders = np.random.default_rng(options.seed), [scorer(name) for name in CLAPS]
    prompts = [prompt.text for prompt in world_prompts("tune", 2 * options.captions, multi=True)]
    pipe, halves = milonga.load("nano"), []
    for own in (prompts[: options.captions], prompts[options.captions :]):
        clips = [Clip(audio, pipe.sampling_rate) for steps in STEPS
                 for audio in pipe(own, seeds=options.seed, num_inference_steps=steps).audios]  # fmt: skip
        texts = own * len(STEPS)
        truth = np.log(scorer("events:nano-tagger").score(clips, texts))
        audio = [np.concatenate([one.embed_clips(clips[n : n + BATCH]) for n in range(0, len(clips), BATCH)])
                 for one in embedders]  # fmt: skip
        ratings = judged(len(clips), options.raters, options.each, (truth - truth.mean()) / truth.std(), rng)
        words = [one.embed_texts(texts) for one in embedders]
        halves.append((Judgements(texts, audio, words, ratings), truth))
    (known, _), (others, truth) = halves
    head, report = learn(known, CLAPS, options.seed)
    print(report)
    scores = np.stack([head.predict(feature_rows(others.audio, others.words)),
                       *((a * t).sum(axis=1) for a, t in zip(others.audio, others.words, strict=True))])  # fmt: skip
    clip, rater, value = (np.array(column) for column in zip(*others.ratings, strict=True))
    caption = np.unique(others.captions, return_inverse=True)[1]
    everyone = np.zeros(len(truth), dtype=int)
    by_raters = Opinions(value, clip, np.unique(rater, return_inverse=True)[1], caption, everyone)
    by_truth = Opinions(truth, np.arange(len(truth)), everyone, caption, everyone)
    for who, opinions in (("other raters", by_raters), ("the truth", by_truth)):
        agreement = clip_agreement(scores, opinions, options.seed)
        for name, row, p in zip(("fitted", *CLAPS), agreement.rows, agreement.behind, strict=True):
            one = row["srcc"]
            print(f"{who}: {name} SRCC {one.value:.3f} [{one.low:.3f}, {one.high:.3f}], n {one.n}, p {p:.2g}")
    few = set(known.captions[:20])
    ratings = [row for row in known.ratings if known.captions[row[0]] in few]
    try:
        learn(Judgements(known.captions, known.audio, known.words, ratings), CLAPS, options.seed)
    except DataError as error:
        print(error)


if __name__ == "__main__":
    main()
