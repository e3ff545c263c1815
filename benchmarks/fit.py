"""`listen fit` on nano: simulated raters of generated clips, held out, predicted by a fitted scorer and by each CLAP.

    python benchmarks/fit.py            # 400 clips of 100 captions of `tune`, 20 raters, seed 0

A rater's mark of a clip is how well its events match the caption (`events:nano-tagger`, which shares nothing with the
CLAPs), in the rater's own mean and spread, with noise as large as the differences between clips. The fit sees marks
alone. It prints the report of `listen fit`, and how well the scorer ranks all clips by the truth.
"""

import argparse

import numpy as np

import milonga
from milonga.core.records import Clip
from milonga.data.captions import world_prompts
from milonga.listening_test.fit import BATCH, Judgements, learn
from milonga.maths.agreement import correlations
from milonga.scorers.fitted import feature_rows
from milonga.scorers.load import scorer

CLAPS = ("nano-clap-a", "nano-clap-b")
STEPS = (1, 2, 4, 8)  # the clips of a caption differ in quality


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=100)
    parser.add_argument("--raters", type=int, default=20)
    parser.add_argument("--each", type=int, default=4, help="raters a clip")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    prompts = [prompt.text for prompt in world_prompts("tune", options.captions, multi=True)]
    pipe = milonga.load("nano")
    clips, texts = [], []
    for steps in STEPS:
        audios = pipe(prompts, seeds=options.seed, num_inference_steps=steps).audios
        clips += [Clip(audio, pipe.sampling_rate) for audio in audios]
        texts += prompts
    truth = np.log(scorer("events:nano-tagger").score(clips, texts))
    worth = (truth - truth.mean()) / truth.std()
    mean, spread = rng.normal(size=options.raters), rng.uniform(0.5, 1.5, options.raters)
    ratings = [
        (clip, f"r{rater}", float(mean[rater] + spread[rater] * (worth[clip] + rng.normal())))
        for clip in range(len(clips))
        for rater in rng.choice(options.raters, options.each, replace=False)
    ]
    embedders = [scorer(name) for name in CLAPS]
    audio = [np.concatenate([one.embed_clips(clips[n : n + BATCH]) for n in range(0, len(clips), BATCH)])
             for one in embedders]  # fmt: skip
    judgements = Judgements(texts, audio, [one.embed_texts(texts) for one in embedders], ratings)
    head, report = learn(judgements, CLAPS, options.seed)
    print(report)
    rows = feature_rows(judgements.audio, judgements.words)
    print(
        f"all clips, also those that it has seen: SRCC with the truth {correlations(head.predict(rows), worth)[0]:.3f}"
    )


if __name__ == "__main__":
    main()
