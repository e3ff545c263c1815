"""A recipe is read strictly, and every mistake is told in one line that says where it is and what to do."""

import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milonga.core.config import RENAMED_SETTINGS, Phase, Settings, Strategy, Threshold
from milonga.core.errors import MilongaWarning, RecipeError
from milonga.experiment.invalidation import STAGES, stages_of
from milonga.experiment.overrides import flat, to_toml
from milonga.experiment.recipe import Recipe, System, load_recipe, parse_recipe, shipped_recipes

KINDS = ("pairs", "rewards", "labels", "online")
MINIMAL = """
name = "tiny"
[prompts]
sources = ["world:train:10"]
[[plan.strategies]]
name = "1"
steps = [5, 5]
guidance = 3.0
"""


SYSTEM = System(name="a", phases=(Phase(loss="sft", epochs=1),))


def mistake(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "x.toml", overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_minimal_recipe_has_the_papers_values_elsewhere():
    recipe = parse_recipe(MINIMAL, "x.toml")
    assert recipe.evaluate.steps == 200
    assert recipe.plan.strategies == (Strategy(name="1", steps=(5, 5), guidance=3.0),)
    assert recipe.train.settings(SYSTEM) == Settings()


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_is_valid_and_names_itself(name):
    assert load_recipe(name).name == name


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("pair.thresolds = []", 'unknown key "pair.thresolds": did you mean "pair.thresholds"?'),
        ("sead = 3", 'unknown key "sead": did you mean "seed"?'),
        ("learning_rate = 1", 'unknown key "learning_rate": did you mean "train.learning_rate"?'),
        ("train.systems = [{nam = 'x'}]", 'unknown key "train.systems.0.nam": did you mean "train.systems.0.name"?'),
        (
            "models.zzz = 1",
            'unknown key "models.zzz": this table knows model, scheduler, precision, seconds, scorers, judge, tagger',
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(key, told):
    assert told in mistake(key + MINIMAL)


def test_a_number_for_a_list_is_told_at_its_key():
    assert mistake(f"{MINIMAL}[label]\nsources = 3\n") == "x.toml: label.sources = 3: must be a valid array"


def test_malformed_toml_has_its_line():
    assert "line 2" in mistake('name = "x"\nseed = = 3\n')


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seed=-1", "seed = -1: must be greater than or equal to 0"),
        ("plan.shard_size=many", 'plan.shard_size = "many": must be a valid integer'),
        ("plan.strategies.0.guidance=true", "plan.strategies.0.guidance = true: must be a valid number"),
        ("plan.strategies.0.negatives=loud", "must be 'none', 'perturbed' or 'temporal'"),
        ("plan.strategies.0.steps=[]", "plan.strategies.0.steps = []: "),
        ("evaluate.guidance=nan", "must be a finite number"),
        ("generate.batch_size=1.5", "generate.batch_size = 1.5: must be a valid integer"),
        ("seed=2026-01-01", 'seed = "2026-01-01": must be a valid integer'),
        ("pair.rank_by=nobody", 'pair.rank_by = "nobody": must be one of mean, nano-clap-a, nano-clap-b'),
        ('models.scorers=["a", "a"]', 'models.scorers: "a" comes twice'),
        ('train.systems=[{name="base", phases=[{loss="sft", epochs=1}]}]', '"base" is a name that evaluation uses'),
        ("label.sources=3", "label.sources = 3: must be a valid array"),
        ("plan.strategies.7.guidance=1", "the recipe has no plan.strategies.7"),
        ("seed.x.y=1", "the recipe has no seed.x"),
        ("seed", "write it as key=value"),
    ],
)
def test_wrong_values_and_overrides(override, told):
    assert told in mistake('seed = 1\npair.rank_by = "mean"\n' + MINIMAL, override)


ONE_SYSTEM = 'train.systems=[{name="a", phases=[{loss="sft", epochs=1}], %s}]'


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ("settings = {bach_size = 2}", 'did you mean "train.systems.0.settings.batch_size"?'),
        ("settings = {batch_size = 0}", "train.systems.0.settings.batch_size = 0: must be greater"),
        ('settings = {old_policy = "ema"}', "needs ema"),
        ('strategies = ["2"]', 'train.systems: strategies = "2": must be one of 1'),
        ('data = "rewards", strategies = ["1"]', 'a is trained on "rewards"'),
    ],
)
def test_a_systems_own_settings_and_strategies_are_checked(changes, told):
    assert told in mistake(MINIMAL, ONE_SYSTEM % changes)


def test_a_systems_settings_must_suit_those_of_all():
    text = MINIMAL + '[train]\nold_policy = "ema"\nema = 0.5\n'
    told = mistake(text, ONE_SYSTEM % "settings = {ema = 0.0}")
    assert told.startswith('x.toml: train: settings of a: old_policy = "ema" needs ema')


def test_a_systems_settings_take_the_place_of_those_of_all_and_survive_being_written():
    recipe = parse_recipe(MINIMAL, "x", ["train.batch_size=4", ONE_SYSTEM % "settings = {learning_rate = 1e-6}"])
    again = parse_recipe(to_toml(recipe), "written")
    for one in (recipe, again):
        own = one.train.settings(one.train.systems[0])
        assert (own.learning_rate, own.batch_size) == (1e-6, 4)
        assert one.train.settings(SYSTEM).learning_rate == Settings().learning_rate


def test_what_is_missing_and_how_much_more_is_wrong():
    assert mistake("seed = -1").startswith("x.toml: name is missing (and 1 more)")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('name = "x"', "prompts.sources is missing: this run makes clips"),
        ('name = "x"\n[prompts]\nsources = ["world:train:3"]', "plan.strategies is missing"),
        (MINIMAL + '[train]\nsystems = [{name="a", data="online", phases=[{loss="sft", epochs=1}]}]',
         "online.prompts is missing"),
        (MINIMAL + '[online.pair]\nrank_by = "x"', 'online.pair.rank_by = "x": must be one of'),
        (MINIMAL + '[reward]\nscorer = "nano-judge"', 'reward.scorer = "nano-judge": must be one of nano-clap-a'),
    ],
)  # fmt: skip
def test_what_a_system_needs_is_asked_for(text, told):
    assert told in mistake(text)


def test_a_recipe_that_learns_from_elsewhere_needs_no_clips_of_its_own():
    text = 'name = "x"\n[train]\npairs = ["there"]\nsystems = [{name="a", phases=[{loss="sft", epochs=1}]}]'
    assert stages_of(parse_recipe(text, "x", ['evaluate.prompts=["p"]'])) == ("train", "evaluate", "report")
    recipe = parse_recipe(text, "x")
    assert stages_of(recipe) == ("train", "report")
    assert stages_of(parse_recipe(MINIMAL, "x")) == tuple(one for one in STAGES if one not in ("label", "reward"))


def test_stages_are_those_that_some_system_learns_from():
    systems = '[train]\nsystems = [{name="a", data="%s", phases=[{loss="sft", epochs=1}]}]\n[online]\nprompts = ["p"]'
    found = {data: set(STAGES) - set(stages_of(parse_recipe(MINIMAL + systems % data, "x"))) for data in KINDS}
    clips = {"plan", "generate", "score", "pair"}
    assert found == {
        "pairs": {"label", "reward"}, "rewards": set(), "labels": {"reward"}, "online": clips | {"label", "reward"}
    }  # fmt: skip


def test_thresholds_must_hang_together():
    threshold = 'pair.thresholds = [{scorer = "%s", min_margin = %s, max_margin = 0.5}]'
    assert "pair.thresholds: scorer" in mistake(threshold % ("other", 0.1) + MINIMAL)
    assert "min_margin is above its max_margin" in mistake(threshold % ("nano-clap-a", 0.6) + MINIMAL)


def test_overrides_are_toml_and_else_text():
    recipe = parse_recipe(
        MINIMAL,
        "x.toml",
        ["train.learning_rate=3e-4", "name=other", "plan.strategies.0.steps=[2]", "models.scorers = ['a']", "seed=7"],
    )
    assert recipe.train.learning_rate == 3e-4
    assert recipe.name == "other"
    assert recipe.plan.strategies[0].steps == (2,)
    assert recipe.models.scorers == ("a",)
    assert recipe.seed == 7


def test_a_recipe_by_name_by_path_by_run_folder_and_not_at_all(tmp_path):
    (tmp_path / "recipe.toml").write_text(MINIMAL)
    assert load_recipe("smoke").name == "smoke"
    assert load_recipe(tmp_path / "recipe.toml") == load_recipe(str(tmp_path)) == parse_recipe(MINIMAL, "x")
    with pytest.raises(RecipeError, match=r"no recipe smok: give a \.toml file or one of .*smoke"):
        load_recipe("smok")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(RecipeError, match="cannot read"):
        load_recipe(tmp_path / "latin.toml")


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
STEPS = st.lists(st.integers(1, 500), min_size=1, max_size=4).map(tuple)
STRATEGIES = st.builds(Strategy, name=NAMES, steps=STEPS, guidance=st.floats(0, 1e9), num_negatives=st.integers(0, 9))
PHASES = st.builds(Phase, loss=NAMES, epochs=st.integers(1, 9), beta=st.floats(0, 1e6), learning_rate=st.none())
SYSTEMS = st.lists(st.sampled_from("abc"), unique=True).map(
    lambda names: [{"name": name, "phases": [{"loss": "sft", "epochs": 1}]} for name in names]
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(NAMES, st.lists(NAMES, min_size=1), st.lists(STRATEGIES, min_size=1, max_size=3, unique_by=lambda s: s.name))
def test_a_recipe_written_as_toml_reads_back_the_same(name, sources, strategies):
    recipe = Recipe.model_validate({"name": name, "prompts": {"sources": sources}, "plan": {"strategies": strategies}})
    text = to_toml(recipe)
    assert parse_recipe(text, "x.toml") == recipe
    assert tomllib.loads(text)["name"] == name


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(SYSTEMS, st.lists(PHASES, min_size=1, max_size=2), st.floats(-1, 1), st.floats(1e-9, 1.0))
def test_nested_arrays_of_tables_read_back_the_same(systems, phases, alpha, rate):
    made = [{**system, "phases": tuple(phases)} for system in systems]
    threshold = Threshold(scorer="nano-clap-a", min_winner_score=alpha, min_loser_score=-1, min_margin=-2, max_margin=2)
    base = parse_recipe(MINIMAL, "x.toml").model_dump()
    base["train"] |= {"systems": made, "learning_rate": rate}
    base["pair"] |= {"thresholds": (threshold,)}
    recipe = Recipe.model_validate(base)
    assert parse_recipe(to_toml(recipe), "x.toml") == recipe


def test_flat_keys():
    assert flat({"a": {"b": 1, "c": {"d": [2]}}, "e": 3}) == {"a.b": 1, "a.c.d": [2], "e": 3}


OLD = """
name = "old"
[prompts]
sources = ["world:train:10"]
[plan]
shard = 8
[[plan.strategies]]
name = "1"
words = "caption"
steps = [4]
guidance = 3.0
[[plan.strategies]]
name = "2"
words = "perturbed"
count = 2
steps = [4]
guidance = 3.0
[generate]
batch = 2
[score]
batch = 3
[[pair.thresholds]]
scorer = "nano-clap-a"
alpha = 0.4
beta = 0.1
delta_low = 0.05
delta_high = 0.3
[label]
sources = ["truth", "people"]
[reward]
held_out = 0.3
[rounds]
least_gain = 0.1
strategies = [{ name = "r", words = "temporal", count = 3, steps = [2], guidance = 1.0 }]
[rounds.pair]
thresholds = [{ scorer = "nano-clap-b", alpha = 0.2 }]
[train]
heldout = 0.2
"""


def test_keys_of_the_first_edition_are_read_with_one_warning_each():
    with pytest.warns(MilongaWarning) as caught:
        old = parse_recipe(OLD, "old.toml")
    said = [str(warning.message) for warning in caught]
    assert old.plan.shard_size == 8
    assert [(one.negatives, one.num_negatives) for one in old.plan.strategies] == [("none", 0), ("perturbed", 2)]
    assert (old.generate.batch_size, old.score.batch_size) == (2, 3)
    limit = Threshold("nano-clap-a", min_winner_score=0.4, min_loser_score=0.1, min_margin=0.05, max_margin=0.3)
    assert old.pair.thresholds == (limit,)
    assert old.label.sources == ("tagger", "people")
    assert (old.reward.val_fraction, old.online.min_gain, old.train.val_fraction) == (0.3, 0.1, 0.2)
    assert old.online.strategies[0] == Strategy.temporal(3, steps=2, guidance=1.0, name="r")
    assert old.online.pair is not None
    assert old.online.pair.thresholds == (Threshold("nano-clap-b", min_winner_score=0.2),)
    assert len(said) == len(set(said)) or all("is now" in one for one in said)
    assert sum("plan.strategies.*.words is now plan.strategies.*.negatives" in one for one in said) == 2
    assert all(one.startswith("old.toml: ") and "\n" not in one for one in said)


def test_settings_of_the_first_edition_are_read_in_train_and_in_a_system():
    for old, new in RENAMED_SETTINGS.items():
        assert new in Settings.model_fields, new
        assert old not in Settings.model_fields, old
    if RENAMED_SETTINGS:
        with pytest.warns(MilongaWarning, match="accumulation is now"):
            recipe = parse_recipe(MINIMAL + "[train]\naccumulation = 4", "x.toml")
        assert recipe.train.gradient_accumulation_steps == 4  # pyright: ignore[reportAttributeAccessIssue]


def test_an_old_key_after_set_is_read_and_one_under_both_names_refused():
    with pytest.warns(MilongaWarning, match=r"--set: plan.strategies.0.words is now plan.strategies.0.negatives"):
        changed = parse_recipe(MINIMAL, "x", ["plan.strategies.0.words=perturbed"])
    assert changed.plan.strategies[0].negatives == "perturbed"
    with pytest.warns(MilongaWarning, match="label.sources"):
        assert parse_recipe(MINIMAL, "x", ['label.sources=["truth"]']).label.sources == ("tagger",)
    assert "old name of shard_size" in mistake(
        MINIMAL.replace("[prompts]", "[plan]\nshard = 1\nshard_size = 2\n[prompts]")
    )


def test_a_recipe_without_old_keys_warns_of_nothing(recwarn):
    for name in shipped_recipes():
        load_recipe(name)
    assert not [one for one in recwarn if issubclass(one.category, MilongaWarning)]
