import contextlib
import inspect
import json
import tomllib
from dataclasses import fields, replace

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from detector.cli import cli
from detector.errors import ConfigError
from detector.model import shipped
from detector.tables import build
from trainer.draw import Augmentation, draw
from trainer.recipe import Named, Recipe, Scheduler, as_tables, check, load_recipe, make_optimizer, make_scheduler

SHIPPED = ("urban.toml", "reference.toml")
AUGMENTATIONS = [(name, each) for name in SHIPPED for each in tomllib.loads(shipped(name).read_text())["augment"]]
REQUIRED = {
    "StepLR": {"step_size": 3},
    "MultiStepLR": {"milestones": [3, 6]},
    "ExponentialLR": {"gamma": 0.9},
    "CyclicLR": {"base_lr": 1e-4},
    "CosineAnnealingWarmRestarts": {"T_0": 5},
}
"""What those schedulers need that cannot do without an argument."""


def classes(module, base):
    """The public classes of a module of torch's that are of a kind."""
    here = [name for name, kind in vars(module).items() if isinstance(kind, type) and issubclass(kind, base) and kind is not base]
    return sorted(name for name in here if not name.startswith("_"))


def refused(recipe):
    """The one line an impossible recipe gives."""
    with pytest.raises(ConfigError) as error:
        check(recipe, "mine.toml")
    said = str(error.value)
    assert said.startswith("mine.toml: ")
    assert "\n" not in said
    return said


def of_toml(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return load_recipe(path)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_recipe_names_a_cfg_beside_it(name):
    recipe = load_recipe(shipped(name))
    assert shipped(recipe.cfg).is_file()
    assert recipe.name == shipped(name).stem


@pytest.mark.parametrize(("name", "augmentation"), AUGMENTATIONS)
def test_an_augmentation_is_off_when_its_table_is_left_out(name, augmentation):
    whole, tables = load_recipe(shipped(name)), tomllib.loads(shipped(name).read_text())
    del tables["augment"][augmentation]
    less = check(build(Recipe, tables, name), name)
    assert getattr(whole.augment, augmentation).p > 0
    assert getattr(less.augment, augmentation).p == 0
    assert replace(less, augment=whole.augment) == whole


def test_without_any_augmentation_a_draw_leaves_every_clip_as_it_is():
    drawn = draw(Augmentation(), torch.full((50,), 700), 800, 16, 40, torch.Generator().manual_seed(1))
    for name, off in {
        "start": 0,
        "keep": 700,
        "offset": 0,
        "gain": 1,
        "partner_gain": 0,
        "rate": 1,
        "ratio": 1,
        "style_own": 1,
    }.items():
        assert (getattr(drawn, name) == off).all(), name
    for name in ("noise_std", "eq_db", "low_hz", "lost", "bands", "frames"):
        assert not getattr(drawn, name).any(), name
    for name in ("drr_db", "background_db", "noise_db", "high_hz"):
        assert getattr(drawn, name).isinf().all(), name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[augment]\nstrech = { p = 0.5 }", "unknown key augment.strech; did you mean augment.stretch?"),
        ("[train]\nepoch = 5", "unknown key train.epoch; did you mean train.epochs?"),
        ("colour = 1", "unknown key colour"),
        ("[augment.crop]\nsigma = 0.2", "[augment.crop] needs p"),
        ("[optimizer]\nargs = { lr = 0.1 }", "[optimizer] needs type"),
        ("[augment.crop]\np = 1.5", "augment.crop.p = 1.5; how often: from 0 to 1"),
        ("[augment.crop]\np = -0.1", "augment.crop.p = -0.1"),
        ("[augment.crop]\np = 0.5\nsigma = -1", "augment.crop.sigma = -1; at least 0"),
        ("[augment.gain]\np = 1\ndb = [6, -24]", "augment.gain.db = [6.0, -24.0]; the lower end first"),
        ("[augment.gain]\np = 1\ndb = 6", "augment.gain.db must be a list of two values, each a number, not 6"),
        ("[augment.stretch]\np = 1\nrate = [0, 1]", "augment.stretch.rate = [0.0, 1.0]; from 0.01 to 100"),
        ("[augment.reverb]\np = 1\nt60_s = [0, 1]", "augment.reverb.t60_s = [0.0, 1.0]; from 0.01 to 100"),
        ("[augment.pitch]\np = 1\nsemitones = [-2, 13]", "augment.pitch.semitones = [-2.0, 13.0]; at most an octave"),
        ("[augment.mask]\np = 1\nbands = -1", "augment.mask.bands = -1; at least 0"),
        ("[augment.eq]\np = 1\ndb = -1", "augment.eq.db = -1; at least 0"),
        ("[augment.lost]\np = 1\nshare = -0.1", "augment.lost.share = -0.1; from 0 to 1"),
        ("[augment.lost]\np = 1\nshare = 15", "augment.lost.share = 15; from 0 to 1"),
        ("[augment.band]\np = 1\nlow_hz = [0, 100]", "augment.band.low_hz = [0.0, 100.0]; from 1 to 1,000,000 Hz"),
        ("[augment.band]\np = 1\nhigh_hz = [100, 1e7]", "augment.band.high_hz = [100.0, 10000000.0]; from 1 to 1,000,000 Hz"),
        ("[augment.band]\np = 1\nlow_hz = [400, 20]", "augment.band.low_hz = [400.0, 20.0]; the lower end first"),
        ("[augment.style]\np = 1\nown = [-0.5, 1]", "augment.style.own = [-0.5, 1.0]; from 0 to 1"),
        ("[augment.style]\np = 1\nown = [0.5, 1.5]", "augment.style.own = [0.5, 1.5]; from 0 to 1"),
        ("[augment.style]\np = 1\nown = 0.5", "augment.style.own must be a list of two values"),
        ("[augment.noise]\np = 1\nstd = -1", "augment.noise.std = -1; at least 0"),
        ('[augment.late]\np = 1\n[train]\nloss = "clip"', "augment.late is for streams"),
        ("[train]\nepochs = -3", "train.epochs = -3; from 1 to "),
        (f"[train]\nepochs = {1 << 2000}", f"train.epochs = {1 << 2000}"[:40]),
        ('[train]\nepochs = "30"', "train.epochs must be a whole number, not '30'"),
        ("[train]\nepochs = 3.5", "train.epochs must be a whole number, not 3.5"),
        ("[train]\nema = nan", "train.ema must be a number, not nan"),
        ("[train]\nclip_grad = inf", "train.clip_grad must be a number, not inf"),
        ("train = 3", "train must be a table, not 3; write [train]"),
        (
            '[train]\nmonitor = "max loudness"',
            "train.monitor = 'max loudness'; write last, or min or max and one of loss, accuracy",
        ),
        ('[train]\nmonitor = "loss"', "train.monitor = 'loss'"),
        ('[train]\nmetrics = ["acuracy"]', "train.metrics has 'acuracy'; did you mean accuracy?"),
        ('[train]\nloss = "mse"', "train.loss = 'mse'; one of stream, clip"),
        ('[train]\nprecision = "16"', "train.precision = '16'; one of auto, 32, bf16"),
        ('[data]\nchannels = "left"', "data.channels = 'left'; one of avg, mono, stereo"),
        ("[data]\ntrain = [1, 11]", "data has fold 11; folds are 1 to 10"),
        ("[batch]\nsize = 0", "batch.size = 0; from 2 to "),
        ("[stream]\nsoundscapes = 1", "stream.soundscapes = 1.0; from 0 to 0.99"),
        ("[stream]\nsoundscapes = -0.1", "stream.soundscapes = -0.1; from 0 to 0.99"),
        ("[stream]\nbackgrounds = 0.4", "unknown key stream.backgrounds"),
        ("[stream]\nquiet = -1", "stream.quiet = -1.0; from 0 to 1,000"),
        ("[train]\nlabel_smoothing = 1", "train.label_smoothing = 1.0; from 0 to 0.99"),
        ('[optimizer]\ntype = "AdamX"', "optimizer.type = 'AdamX' is none of torch's; did you mean Adam"),
        ('[optimizer]\ntype = "Optimizer"', "optimizer.type = 'Optimizer' is none of torch's"),
        (
            '[optimizer]\ntype = "Adam"\nargs = { lrr = 1 }',
            "unknown key optimizer.args.lrr: Adam has no such argument; did you mean lr?",
        ),
        ('[optimizer]\ntype = "Adam"\nargs = { params = [1] }', "unknown key optimizer.args.params"),
        ('[optimizer]\ntype = "Adam"\nargs = { lr = -1 }', "optimizer.args: Invalid learning rate: -1"),
        ('[optimizer]\ntype = "Adam"\nargs = { lr = "fast" }', "optimizer.args.lr = 'fast'; a value like torch's own, 0.001"),
        ('[optimizer]\ntype = "Adam"\nargs = { betas = [0.9] }', "optimizer.args: "),
        ('[optimizer]\ntype = "Adam"\nargs = { capturable = true }', "optimizer Adam does not fit this training: "),
        ('[optimizer]\ntype = "SGD"\nargs = { momentum = 0.9, dampening = "x" }', "optimizer.args.dampening = 'x'"),
        ('[optimizer]\ntype = "LBFGS"', "optimizer LBFGS does not fit this training: LBFGS.step() missing 1 required positional"),
        ('[lr_scheduler]\ntype = "SteppLR"', "lr_scheduler.type = 'SteppLR' is none of torch's; did you mean StepLR?"),
        ('[lr_scheduler]\ntype = "StepLR"', "lr_scheduler StepLR needs step_size; give it under lr_scheduler.args"),
        ('[lr_scheduler]\ntype = "StepLR"\nargs = { step_size = 0 }', "lr_scheduler.args: "),
        ('[lr_scheduler]\ntype = "StepLR"\nargs = { step_size = 9, gamma = "x" }', "lr_scheduler.args.gamma = 'x'"),
        ('[lr_scheduler]\ntype = "StepLR"\nargs = { size = 3 }', "unknown key lr_scheduler.args.size: StepLR has no such argument"),
        ('[lr_scheduler]\ntype = "ConstantLR"\nargs = { optimizer = 3 }', "unknown key lr_scheduler.args.optimizer"),
        ('[lr_scheduler]\ntype = "ConstantLR"\ninterval = "day"', "lr_scheduler.interval = 'day'; one of epoch, step"),
        (
            '[lr_scheduler]\ntype = "LambdaLR"',
            "lr_scheduler LambdaLR needs lr_lambda, which no recipe can hold; choose another type",
        ),
        ('[lr_scheduler]\ntype = "LambdaLR"\nargs = { lr_lambda = "x" }', "lr_scheduler LambdaLR needs lr_lambda, which no recipe"),
        ('[lr_scheduler]\ntype = "ReduceLROnPlateau"\ninterval = "step"', 'waits for the validation; interval = "epoch"'),
        ('[lr_scheduler]\ntype = "ReduceLROnPlateau"\nargs = { patience = "x" }', "lr_scheduler.args.patience = 'x'"),
        ('[lr_scheduler]\ntype = "OneCycleLR"\nargs = { total_steps = 5 }', "a total of 5 steps, and the training has 30"),
        ("[train", "is not TOML"),
    ],
)
def test_what_a_recipe_cannot_mean_is_one_line_that_names_file_and_key(tmp_path, text, said):
    with pytest.raises(ConfigError) as error:
        of_toml(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path / 'mine.toml'}: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mine.toml", "mine.json"])
def test_the_command_ends_with_78_before_it_reads_a_clip(tmp_path, name):
    path = tmp_path / name
    path.write_text('{"epoch": 1}' if name.endswith("json") else "[augment.crop]\np = 1.5")
    for arguments in (["--recipe", str(path)], ["--recipe", str(tmp_path / "none.toml")]):
        result = CliRunner().invoke(cli, ["train", "--fold", "1", "--data", str(tmp_path), *arguments])
        assert isinstance(result.exception, ConfigError)
        assert result.exception.exit_code == 78
        assert result.output == ""


def test_what_the_command_line_changes_is_checked_with_the_recipe(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[lr_scheduler]\ntype = "OneCycleLR"\nargs = { total_steps = 30 }')
    result = CliRunner().invoke(cli, ["train", "--recipe", str(path), "--cfg", str(shipped("urban.cfg")), "--epochs", "40"])
    assert isinstance(result.exception, ConfigError)
    assert f"{path} and the command line: " in str(result.exception)


@pytest.mark.parametrize("name", classes(torch.optim, Optimizer))
def test_every_optimizer_of_torch_loads_or_says_in_one_line_why_not(name):
    recipe = replace(Recipe(), optimizer=Named(name))
    if name in ("LBFGS", "Muon", "SparseAdam"):
        assert name in refused(recipe)
    else:
        assert type(make_optimizer(check(recipe, "x"), [torch.nn.Parameter(torch.zeros(2))])).__name__ == name


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("name", classes(lr_scheduler, LRScheduler))
def test_every_scheduler_of_torch_loads_or_says_in_one_line_why_not(name, interval):
    recipe = replace(Recipe(), lr_scheduler=Scheduler(name, REQUIRED.get(name, {}), interval))
    if name in ("LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"):
        assert f"{name} needs " in refused(recipe)
    elif (name, interval) == ("ReduceLROnPlateau", "step"):
        assert "waits for the validation" in refused(recipe)
    else:
        optimizer = make_optimizer(check(recipe, "x"), [torch.nn.Parameter(torch.zeros(2))])
        assert type(make_scheduler(recipe, optimizer, 10)).__name__ == name
    if name in REQUIRED:
        assert f"needs {next(iter(REQUIRED[name]))}" in refused(replace(recipe, lr_scheduler=Scheduler(name)))


ARGUMENTS = [
    (table, name, argument)
    for table, module, base in (("optimizer", torch.optim, Optimizer), ("lr_scheduler", lr_scheduler, LRScheduler))
    for name in classes(module, base)
    for argument in inspect.signature(getattr(module, name)).parameters
]


@settings(deadline=None)
@given(
    st.sampled_from(ARGUMENTS),
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=3), st.lists(st.floats(), max_size=3)),
)
def test_whatever_a_recipe_gives_to_torch_it_loads_or_says_in_one_line_why_not(argument, value):
    table, name, key = argument
    given = Named(name, {key: value}) if table == "optimizer" else Scheduler(name, REQUIRED.get(name, {}) | {key: value})
    with contextlib.suppress(ConfigError):  # one line, by its class
        check(replace(Recipe(), **{table: given}), "mine.toml")


@pytest.mark.parametrize(("interval", "steps"), [("epoch", 7), ("step", 70)])
def test_the_length_of_the_training_and_the_highest_rate_are_filled_in(interval, steps):
    recipe = Recipe(optimizer=Named("AdamW", {"lr": 0.02}), train=replace(Recipe().train, epochs=7))
    for name, length in (("OneCycleLR", "total_steps"), ("CosineAnnealingLR", "T_max")):
        with_it = replace(recipe, lr_scheduler=Scheduler(name, {}, interval))
        optimizer = make_optimizer(with_it, [torch.nn.Parameter(torch.zeros(2))])
        schedule = make_scheduler(with_it, optimizer, 10)
        assert getattr(schedule, length) == steps
        rates = []
        for _ in range(steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert max(rates) == pytest.approx(0.02, rel=0.1)
        assert rates[-1] < 0.06 * max(rates)


def test_what_is_given_is_not_filled_in():
    recipe = replace(Recipe(), lr_scheduler=Scheduler("OneCycleLR", {"max_lr": 0.5, "total_steps": 900}))
    schedule = make_scheduler(recipe, make_optimizer(recipe, [torch.nn.Parameter(torch.zeros(2))]), 10)
    assert schedule.total_steps == 900
    assert schedule.optimizer.param_groups[0]["max_lr"] == 0.5


@pytest.mark.parametrize(("monitor", "mode"), [("min loss", "min"), ("max accuracy", "max")])
def test_a_plateau_is_one_of_the_monitored_metric(monitor, mode):
    recipe = replace(Recipe(), lr_scheduler=Scheduler("ReduceLROnPlateau"), train=replace(Recipe().train, monitor=monitor))
    assert make_scheduler(recipe, make_optimizer(recipe, [torch.nn.Parameter(torch.zeros(2))]), 10).mode == mode


def test_a_plateau_needs_a_metric_to_wait_for():
    recipe = replace(Recipe(), lr_scheduler=Scheduler("ReduceLROnPlateau"), train=replace(Recipe().train, monitor="last"))
    with pytest.raises(ConfigError, match=r"waits for a metric, and train\.monitor is last"):
        check(recipe, "mine.toml")


def test_a_schedule_that_ends_before_the_training_is_refused_where_the_steps_are_known():
    recipe = replace(Recipe(), lr_scheduler=Scheduler("OneCycleLR", {"total_steps": 200}, "step"))
    check(recipe, "mine.toml")
    optimizer = make_optimizer(recipe, [torch.nn.Parameter(torch.zeros(2))])
    with pytest.raises(ConfigError, match="a total of 200 steps, and the training has 300"):
        make_scheduler(recipe, optimizer, 10)


@pytest.mark.parametrize("name", [*SHIPPED, None])
def test_a_recipe_as_tables_is_json_and_builds_the_same_recipe(name):
    recipe = load_recipe(shipped(name)) if name else Recipe()
    tables = as_tables(recipe)
    assert json.loads(json.dumps(tables)) == tables
    assert check(build(Recipe, tables, "x"), "x") == recipe
    assert {each.name for each in fields(Augmentation)} == set(tables["augment"])
