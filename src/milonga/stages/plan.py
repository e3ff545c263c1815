"""Which clips to make: the paper's strategies (§4.1.1) as requests.

The clip x_τ of a prompt's own words at 50 steps serves strategies 1.1, 1.2, 2 and 3 at once; it is planned once, with
all of them listed, so nothing is generated twice.
"""

from collections.abc import Iterable, Sequence

from milonga.core.errors import DataError
from milonga.core.ids import derive_seed
from milonga.core.parts import Perturber
from milonga.core.records import Prompt, Refusal, Request
from milonga.core.settings import Strategy
from milonga.stages.prompts import temporal


def plan(
    prompts: Sequence[Prompt], strategies: Sequence[Strategy], perturber: Perturber, run_seed: int
) -> tuple[list[Request], list[Refusal]]:
    """The requests of all prompts under all strategies, each clip once, and the prompts that gave fewer than asked.

    Order: prompt by prompt, strategy by strategy. Raises DataError when two strategies share a name.
    """
    names = [strategy.name for strategy in strategies]
    if len(set(names)) < len(names):
        raise DataError(f"two strategies have the same name (names: {', '.join(names)}); rename one")
    in_time = {prompt.id for prompt in temporal(prompts)}
    requests: dict[str, Request] = {}
    refusals: list[Refusal] = []
    for prompt in prompts:
        for strategy in strategies:
            if strategy.words != "temporal" or prompt.id in in_time:
                words, refused = _words(prompt, strategy, perturber, run_seed)
                refusals += refused
                _merge(requests, _requests(prompt, strategy, words, run_seed))
    return list(requests.values()), refusals


def _words(
    prompt: Prompt, strategy: Strategy, perturber: Perturber, run_seed: int
) -> tuple[list[tuple[str, int, int]], list[Refusal]]:
    """(words, steps, number) of each clip: equal steps are numbered 0, 1, 2, ...; x_τ has number 0."""
    if strategy.words == "caption":
        steps = strategy.steps
        return [(prompt.text, count, steps[:place].count(count)) for place, count in enumerate(steps)], []
    wrong = _perturbed(prompt, strategy, perturber, run_seed)
    refused = []
    if len(wrong) < strategy.count:
        reason = f"{strategy.name}: perturber {perturber.name!r} gave {len(wrong)} of {strategy.count} wrong captions"
        refused = [Refusal(stage="plan", id=prompt.id, reason=reason)]
    # Without a wrong caption x_τ would have nothing to win against.
    texts = [prompt.text, *wrong] if wrong else []
    return [(text, strategy.steps[0], 0) for text in texts], refused


def _perturbed(prompt: Prompt, strategy: Strategy, perturber: Perturber, run_seed: int) -> list[str]:
    """At most `count` wrong captions, none of them the caption itself or another one again."""
    seed = derive_seed(run_seed, "perturb", strategy.words, prompt.id)
    made = perturber.perturb(prompt, strategy.count, temporal=strategy.words == "temporal", seed=seed)
    distinct: dict[str, str] = {}
    for text in made:
        distinct.setdefault(_plain(text), text.strip())
    return [text for plain, text in distinct.items() if plain and plain != _plain(prompt.text)][: strategy.count]


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(" .")


def _requests(
    prompt: Prompt, strategy: Strategy, words: Iterable[tuple[str, int, int]], run_seed: int
) -> Iterable[Request]:
    for text, steps, number in words:
        yield Request.of(run_seed, prompt, text, steps, strategy.guidance, number, (strategy.name,))


def _merge(requests: dict[str, Request], new: Iterable[Request]) -> None:
    """Adds requests to those there are; the same clip twice becomes one that serves both strategies."""
    for request in new:
        known = requests.get(request.id)
        if known is None:
            requests[request.id] = request
        elif request.strategies[0] not in known.strategies:
            strategies = known.strategies + request.strategies
            requests[request.id] = known.model_copy(update={"strategies": strategies})
