"""Systems by search: the pool, the choice, the curve, and what a changed recipe clears."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_parts import parts_folder

from milonga.core.audio import clips_of
from milonga.core.errors import RecipeError
from milonga.core.records import Candidate, Comparison, Prompt, Request, SearchPoint, Summary
from milonga.core.store import Run
from milonga.data.captions import world_prompts
from milonga.engines.local import LocalEngine
from milonga.evaluation.features import ClipFeatures
from milonga.evaluation.formatting import run_outcome
from milonga.experiment import run as pipeline
from milonga.experiment.invalidation import clear_changed
from milonga.experiment.manifest import status
from milonga.experiment.recipe import parse_recipe
from milonga.experiment.registry import DEFAULT, Context
from milonga.experiment.search import curve
from milonga.maths.statistics import mean_z_scores
from milonga.reports.material import read_rows

TWO = ("base", "tuned")
KINDS = ("clips", "features", "seconds", "scores")
RECIPE = """
name = "tiny"
seed = 5
[models]
model = "{folder}/tango"
scorers = ["{folder}/one", "{folder}/two"]
judge = "{folder}/judge"
tagger = "{folder}/tagger"
[plan]
shard_size = 7
[evaluate]
prompts = ["world:test:6"]
noises = 2
steps = 2
guidance = 3.0
resamples = 50
pool = 6
models = [{{ name = "again", model = "{folder}/tango" }}]
search = [
  {{ name = "best-of-3", n = 3 }},
  {{ name = "best-of-2", n = 2, scorers = ["{folder}/two"] }},
]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parts_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return pipeline.run(parse_recipe(RECIPE.format(folder=folder), "tiny.toml"), folder / "run")


def clips(run: Run, stage: str) -> dict[str, np.ndarray]:
    shards = run.stage(stage)
    tables = [shards.read_table(shard, ["id", "audio"]) for shard in shards.names()]
    return {name: clip.waveform for table in tables for name, clip in clips_of(table).items()}


@pytest.mark.slow
def test_another_model_is_a_row_like_the_base(run: Run) -> None:
    base, again = (clips(run, f"evaluate/{name}") for name in ("base", "again"))
    assert base.keys() == again.keys()
    assert all(np.array_equal(base[name], again[name]) for name in base)
    rows = read_rows(run.path / "metrics" / "summary.json", Summary)
    values = {row.system: row.value for row in rows if (row.metric, row.split) == ("clap", "overall")}
    assert values["again"] == values["base"]


@pytest.mark.slow
def test_nothing_is_generated_to_learn_from(run: Run) -> None:
    assert [row.stage for row in status(run.path)] == ["train", "evaluate", "report"]
    assert all(row.done == row.expected for row in status(run.path) if row.stage != "train")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "n", "scorers"), [("best-of-3", 3, ("one", "two")), ("best-of-2", 2, ("two",))])
def test_a_search_answers_each_request_by_the_best_of_its_own_clips(run, folder, name, n, scorers):
    pool, picked, base = (clips(run, stage) for stage in ("search/clips/base", f"evaluate/{name}", "evaluate/base"))
    scores = {row.request.id: row for row in run.stage("search/scores/base").read_records(Candidate)}
    features = {row.id: row for row in run.stage("search/features/base").read_records(ClipFeatures)}
    own = {row.id: row for row in run.stage(f"features/{name}").read_records(ClipFeatures)}
    prompts = run.stage("evaluate/prompts").read_records(Prompt)
    assert len(pool) == 6 * 6
    assert len(picked) == len(base) == 6 * 2
    for prompt in prompts:
        for slot in (0, 1):
            group = [Request.of(5, prompt, prompt.text, 2, 3.0, number).id for number in range(slot * n, slot * n + n)]
            columns = [[scores[clip].scores[f"{folder}/{one}"] for one in scorers] for clip in group]
            best = group[int(np.argmax(mean_z_scores(np.array(columns))))]
            place = Request.of(5, prompt, prompt.text, 2, 3.0, slot).id
            np.testing.assert_array_equal(picked[place], pool[best])
            np.testing.assert_array_equal(base[place], pool[place])
            assert own[place].clap == features[best].clap
            assert own[place].number == slot


@pytest.mark.slow
def test_the_curve_begins_at_the_pools_mean_and_its_rows_are_in_the_tables(run: Run) -> None:
    points = read_rows(run.path / "metrics" / "search.json", SearchPoint)
    features = run.stage("search/features/base").read_records(ClipFeatures)
    claps = [row for row in points if row.metric == "clap" and row.search == "best-of-3"]
    assert [row.n for row in claps] == [1, 2, 3, 4, 5, 6]
    assert claps[0].value == pytest.approx(np.mean([row.clap for row in features]))
    assert (claps[0].gain, claps[0].gain_low, claps[0].gain_high) == (0, 0, 0)
    assert all(row.low <= row.value <= row.high and row.captions == 6 for row in claps)
    assert [row.passes for row in claps] == [4, 8, 12, 16, 20, 24]
    assert 0 < claps[0].seconds < claps[1].seconds / 2
    assert {"clap", "full_recall", "extra_events", "exact_match"} <= {row.metric for row in points}
    systems = {row.system for row in read_rows(run.path / "metrics" / "summary.json", Summary)}
    assert systems == {"base", "again", "best-of-3", "best-of-2", "reference"}
    compared = {(row.a, row.b) for row in read_rows(run.path / "metrics" / "comparisons.json", Comparison)}
    assert ("best-of-3", "base") in compared
    assert "best-of-2" in (run_outcome(run.path) or "")


@pytest.mark.parametrize(("own", "passes"), [("", [4, 8, 12]), (", steps = 7", [14, 28, 42])])
def test_passes_are_those_of_the_searched_systems_own_steps(own: str, passes: list[int], tmp_path: Path) -> None:
    text = RECIPE.format(folder="parts").partition("search = [")[0].replace("pool = 6", "pool = 3")
    text += f"""search = [{{ name = "best", system = "tuned", n = 3 }}]
[train]
pairs = ["elsewhere"]
systems = [{{ name = "tuned", phases = [{{ loss = "sft", epochs = 1 }}]{own} }}]
"""
    recipe, run = parse_recipe(text.replace("noises = 2", "noises = 1"), "tiny.toml"), Run(tmp_path)
    prompts, stream = world_prompts("test", 2), np.random.default_rng(0)
    requests = [Request.of(5, prompt, prompt.text, 2, 3.0, number) for prompt in prompts for number in range(3)]
    scores = [
        Candidate(request=request, scores={name: float(stream.random()) for name in recipe.models.scorers})
        for request in requests
    ]
    features = [
        ClipFeatures(
            id=request.id, prompt_id=request.prompt_id, number=request.number, clap=float(stream.random()), events=(),
            embedding=(), logits=(), silent=False, clipped=False,
        )
        for request in requests
    ]  # fmt: skip
    run.stage("search/scores/tuned").write_records("00000", scores, Candidate)
    run.stage("search/features/tuned").write_records("00000", features, ClipFeatures)
    points = curve(Context(recipe, run, DEFAULT, LocalEngine()), recipe.evaluate.search[0], prompts)
    assert [point.passes for point in points if point.metric == "clap"] == passes


@pytest.mark.slow
def test_running_again_changes_nothing_and_another_search_keeps_the_pool(run: Run, folder: Path) -> None:
    copy = Run(folder / "copy")
    shutil.copytree(run.path, copy.path)
    text = RECIPE.format(folder=folder)
    stamps = {path: path.stat().st_mtime_ns for path in copy.path.rglob("*.parquet")}
    pipeline.run(parse_recipe(text, "x"), copy.path)
    assert {path: path.stat().st_mtime_ns for path in copy.path.rglob("*.parquet")} == stamps
    changed = text.replace('name = "best-of-3", n = 3', 'name = "other", n = 2')
    pipeline.run(parse_recipe(changed, "x"), copy.path)
    assert not (copy.path / "evaluate" / "best-of-3").exists()
    assert (copy.path / "evaluate" / "other").exists()
    stays = [path for path in stamps if path.is_relative_to(copy.path / "search" / "clips")]
    stays += [path for path in stamps if path.is_relative_to(copy.path / "features" / "base")]
    assert len(stays) > 3
    assert all(path.stat().st_mtime_ns == stamps[path] for path in stays)
    pipeline.run(parse_recipe(changed.replace("pool = 6", "pool = 4"), "x"), copy.path)
    assert len(clips(copy, "search/clips/base")) == 6 * 4
    assert all(path.stat().st_mtime_ns == stamps[path] for path in stays if "features" in path.parts[-3:])


@pytest.mark.parametrize(
    ("keys", "gone"),
    [
        (["evaluate.search"], {"evaluate/best", "features/best", "search/scores/base", "search/scores/tuned"}),
        (
            ["evaluate.pool", "evaluate.search"],
            {"evaluate/best", "features/best", *(f"search/{kind}/{name}" for kind in KINDS for name in TWO)},
        ),
        (
            ["train.systems.tuned.phases"],
            {"evaluate/tuned", "features/tuned", "evaluate/best", "features/best", "search/scores/base"}
            | {f"search/{kind}/tuned" for kind in KINDS},
        ),
        (
            ["models.scorers"],
            {"evaluate/tuned", "features/tuned", "evaluate/best", "features/best", "search/scores/base"}
            | {f"search/{kind}/tuned" for kind in KINDS},
        ),
    ],
)
def test_a_change_clears_what_depends_on_it_and_no_more(keys, gone, tmp_path):
    folders = {f"{kind}/{name}" for kind in ("evaluate", "features") for name in (*TWO, "best")}
    folders |= {f"search/{kind}/{name}" for kind in KINDS for name in TWO}
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "search.json").write_text("[]")
    clear_changed(Run(tmp_path), keys, searches={"best"})
    assert {folder for folder in folders if not (tmp_path / folder).exists()} == gone
    assert not (tmp_path / "metrics" / "search.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["clips", *(pytest.param(one, marks=pytest.mark.slow) for one in ("features", "scores"))]
)
def test_a_pool_that_was_interrupted_resumes_to_the_same_clips(run: Run, folder: Path, kind: str) -> None:
    copy = Run(folder / f"killed-{kind}")
    shutil.copytree(run.path, copy.path)
    for path in (copy.path / "search" / kind / "base").glob("0000[24]*"):
        path.unlink()
    for name in ("evaluate/best-of-3", "features/best-of-3", "evaluate/best-of-2", "features/best-of-2"):
        shutil.rmtree(copy.path / name)
    for name in ("summary", "search", "comparisons"):
        (copy.path / "metrics" / f"{name}.json").unlink()
    pipeline.run(parse_recipe(RECIPE.format(folder=folder), "x"), copy.path)
    for name in ("evaluate/best-of-3", "evaluate/best-of-2"):
        again = clips(copy, name)
        for clip, wave in clips(run, name).items():
            np.testing.assert_allclose(again[clip], wave, atol=2e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("/two\"] }}", "/judge\"] }}"), "best-of-2 chooses by .*judge, which measures the result"),
        (("scorers = [\"{folder}/two\"]", "scorers = [\"events:{folder}/tagger\"]"), "which measures the result"),
        (("n = 3 ", "n = 4 "), "best-of-3 takes the best of 4 for each of 2 clips of a caption, and pool has 6 clips"),
        (("name = \"best-of-2\"", "name = \"best-of-3\""), "\"best-of-3\" comes twice"),
        (("name = \"best-of-2\"", "name = \"reference\""), "\"reference\" comes twice"),
        (("n = 3 ", "n = 3, system = \"sft\""), "evaluate.search: system = \"sft\": must be one of again, base"),
    ],
)  # fmt: skip
def test_a_search_that_makes_no_sense_is_refused(change, message, folder):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(RECIPE.replace(*change).format(folder=folder), "x")


def test_the_judges_weights_under_another_name_are_refused(folder):
    shutil.copytree(folder / "judge", folder / "someone")
    recipe = parse_recipe(RECIPE.replace('/two"] }}', '/someone"] }}').format(folder=folder), "x")
    with pytest.raises(RecipeError, match=r"chooses by .*someone, the weights of .*judge, which measures the result"):
        pipeline.run(recipe, folder / "cheat")


@pytest.mark.slow
def test_the_report_draws_the_curves_and_says_what_a_clip_costs(run: Run, folder: Path) -> None:
    page = (run.path / "report.html").read_text(encoding="utf-8")
    section = page.partition('<section id="search">')[2].partition("</section>")[0]
    assert section.count("<h3>") == 2  # one pool, two sets of scorers
    assert f"base, chosen by {folder}/one and {folder}/two: gain against N" in section
    assert section.count("<svg") == 2 * len({row.metric for row in points_of(run)})
    rows = [row.partition("</th>") for row in section.split('<tr><th scope="row">')[1:]]
    assert [name for name, *_ in rows] == ["base, one clip", "best-of-3", "best-of-2"]
    assert [row.partition("<td>")[2].partition("</td>")[0] for *_, row in rows] == ["4", "12", "8"]
    assert "All systems start from the same seed" not in page


def points_of(run: Run) -> list[SearchPoint]:
    return read_rows(run.path / "metrics" / "search.json", SearchPoint)
