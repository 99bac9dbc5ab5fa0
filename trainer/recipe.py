"""A recipe: all that makes a training but the architecture and the data themselves. TOML, or the reference project's JSON."""

from __future__ import annotations

import dataclasses
import inspect
import json
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from detector.errors import ConfigError
from detector.tables import build, closest, read_file, read_toml
from trainer.draw import Augmentation
from trainer.evaluation import METRICS
from trainer.reference import from_reference

LAST = "last"
MOST_JSON_BYTES = 1 << 20
"""Of the reference project's config, which has 3 kB."""
CHANNELS, LOSSES, PRECISIONS, INTERVALS = ("avg", "mono", "stereo"), ("stream", "clip"), ("auto", "32", "bf16"), ("epoch", "step")


@dataclass(frozen=True)
class Data:
    """[data]: path, the UrbanSound8K folder; background, folders of sounds that are none of the classes;
    recordings, a CSV file of recordings with known events and their folds; channels, `avg` of all,
    the first one (`mono`) or both (`stereo`, for a cfg with two input channels); min_clip_s, shorter clips are not trained on;
    workers, threads that decode, 0 one a core; train, val, test, the folds, where no --fold is given."""

    path: str = "UrbanSound8K"
    background: tuple[str, ...] = ()
    recordings: str = ""
    channels: str = "avg"
    min_clip_s: float = 0.0
    workers: int = 0
    train: tuple[int, ...] = ()
    val: tuple[int, ...] = ()
    test: tuple[int, ...] = ()


@dataclass(frozen=True)
class Batch:
    """[batch]: size, rows of a batch over all devices; drop_last, leave an epoch's last, smaller batch out; balance, how much more
    seldom a clip is drawn when its recording has many: (clips of its recording) ** -balance, 0 draws each once an epoch."""

    size: int = 40
    shuffle: bool = True
    drop_last: bool = True
    balance: float = 0.0


@dataclass(frozen=True)
class Stream:
    """[stream], for loss = "stream": canvas_s, sound a row hears per batch; soundscapes, the share of rows that hear 20 to 60 s of
    street instead of clips; recorded, the share of those that are recordings with known events, not mixed from clips, where there
    are any; quiet, what a moment of those without any event weighs; fresh, how often a row starts anew instead of carrying its
    state on."""

    canvas_s: float = 4.1
    soundscapes: float = 0.4
    recorded: float = 0.3
    quiet: float = 3.0
    fresh: float = 0.4


@dataclass(frozen=True)
class Named:
    """[optimizer]: any class of torch.optim by its name, and its arguments."""

    type: str
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Scheduler:
    """[lr_scheduler]: any class of torch.optim.lr_scheduler; interval, when it steps, `epoch` or `step`.

    `total_steps` and `T_max` are the whole training, `max_lr` is the optimizer's lr, where they are not given.
    """

    type: str
    args: Mapping[str, Any] = field(default_factory=dict)
    interval: str = "epoch"


@dataclass(frozen=True)
class Train:
    """[train]: loss, `stream` (rows with carried state, cross-entropy of every row and label and of the clip's pooled answer) or
    `clip` (whole clips, cross-entropy of the answer); label_smoothing, of that answer (Szegedy et al. 2016); precision, `auto`,
    `32` or `bf16`; clip_grad, the largest norm of the gradient, 0 any; ema, decay of the averaged weights, 0 none; monitor, what
    chooses the epoch on the validation fold, `min` or `max` and a metric, or `last`: none is; early_stop, epochs without a better
    one before it stops, 0 never; metrics, printed each epoch; save_every, epochs between checkpoints; verbosity, 0
    results, 1 a line an epoch, 2 progress within it; tensorboard, log."""

    loss: str = "stream"
    label_smoothing: float = 0.0
    epochs: int = 30
    seed: int = 1
    precision: str = "auto"
    clip_grad: float = 5.0
    ema: float = 0.995
    monitor: str = "min loss"
    early_stop: int = 10
    metrics: tuple[str, ...] = ("accuracy", "f1")
    save_dir: str = "runs"
    save_every: int = 1
    verbosity: int = 2
    tensorboard: bool = True


@dataclass(frozen=True)
class Recipe:
    """How to train. name: of the run and the model, else the cfg's; cfg: the architecture, beside the recipe."""

    name: str = ""
    cfg: str = ""
    data: Data = Data()
    batch: Batch = Batch()
    stream: Stream = Stream()
    augment: Augmentation = field(default_factory=Augmentation)
    optimizer: Named = Named("AdamW", types.MappingProxyType({"lr": 2e-3, "weight_decay": 0.01}))
    lr_scheduler: Scheduler | None = None
    train: Train = Train()

    @property
    def monitored(self) -> tuple[str, bool]:
        """The metric that chooses the epoch, and whether more of it is better; `epoch` where it is simply the last one."""
        direction, metric = self.train.monitor.split() if self.train.monitor != LAST else ("max", "epoch")
        return metric, direction == "max"


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe; `.json` is the reference project's config. Raises ConfigError naming file and key."""
    path = Path(path)
    if path.suffix != ".json":
        return check(build(Recipe, read_toml(path), str(path)), str(path))
    content = read_file(path, MOST_JSON_BYTES)
    try:
        tables = from_reference(json.loads(content), str(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(str(path), f"is not JSON ({error})", "JSON has no comments") from error
    return check(build(Recipe, tables, str(path)), str(path))


def as_tables(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain tables, for a checkpoint or JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(_plain(recipe)))
    return plain


def check(recipe: Recipe, where: str) -> Recipe:
    """The recipe itself. Raises ConfigError naming the key that cannot work."""
    t, s = recipe.train, recipe.stream
    for key, value, choices in (
        ("data.channels", recipe.data.channels, CHANNELS),
        ("train.loss", t.loss, LOSSES),
        ("train.precision", t.precision, PRECISIONS),
        ("lr_scheduler.interval", recipe.lr_scheduler.interval if recipe.lr_scheduler else "epoch", INTERVALS),
    ):
        if value not in choices:
            raise ConfigError(where, f"{key} = {value!r}", f"one of {', '.join(choices)}")
    for key, number, low, high in (
        ("data.min_clip_s", recipe.data.min_clip_s, 0, 60),
        ("data.workers", recipe.data.workers, 0, 1024),
        ("batch.size", recipe.batch.size, 2, 1 << 20),
        ("batch.balance", recipe.batch.balance, 0, 1),
        ("stream.canvas_s", s.canvas_s, 0.1, 600),
        ("stream.soundscapes", s.soundscapes, 0, 0.99),
        ("stream.recorded", s.recorded, 0, 1),
        ("stream.quiet", s.quiet, 0, 1000),
        ("stream.fresh", s.fresh, 0, 1),
        ("train.label_smoothing", t.label_smoothing, 0, 0.99),
        ("train.epochs", t.epochs, 1, 1 << 20),
        ("train.seed", t.seed, 0, (1 << 63) - 1),
        ("train.clip_grad", t.clip_grad, 0, 1e9),
        ("train.ema", t.ema, 0, 0.999999),
        ("train.early_stop", t.early_stop, 0, 1 << 20),
        ("train.save_every", t.save_every, 1, 1 << 20),
        ("train.verbosity", t.verbosity, 0, 2),
    ):
        if not low <= number <= high:
            raise ConfigError(where, f"{key} = {number!r:.60}", f"from {low:,} to {high:,}")
    for fold in (*recipe.data.train, *recipe.data.val, *recipe.data.test):
        if not 1 <= fold <= 10:
            raise ConfigError(where, f"data has fold {fold}", "folds are 1 to 10")
    folds = [*recipe.data.train, *recipe.data.val, *recipe.data.test]
    if len(set(folds)) < len(folds):
        raise ConfigError(where, "a fold of data.train, data.val and data.test is there twice", "each trains, chooses or is tested")
    words = t.monitor.split()
    if t.monitor != LAST and (len(words) != 2 or words[0] not in ("min", "max") or words[1] not in METRICS):
        raise ConfigError(where, f"train.monitor = {t.monitor!r}", f"write last, or min or max and one of {', '.join(METRICS)}")
    for name in t.metrics:
        if name not in METRICS:
            raise ConfigError(where, f"train.metrics has {name!r}", closest(name, METRICS))
    _check_augmentation(recipe.augment, where)
    if t.loss == "clip" and recipe.augment.late.p:
        raise ConfigError(where, 'augment.late is for streams, and train.loss is "clip"', "leave [augment.late] out")
    _try(recipe, where)
    return recipe


def make_optimizer(recipe: Recipe, parameters: Iterable[torch.nn.Parameter], where: str = "recipe") -> Optimizer:
    """The optimizer the recipe names. Raises ConfigError for a name, an argument or a value torch does not know."""
    kind = _named(torch.optim, recipe.optimizer.type, Optimizer, where, "optimizer")
    _check_arguments(kind, recipe.optimizer.args, where, "optimizer")
    with _told(where, "optimizer.args"):
        return kind(parameters, **recipe.optimizer.args)  # type: ignore[no-any-return]


def make_scheduler(recipe: Recipe, optimizer: Optimizer, steps_an_epoch: int, where: str = "recipe") -> LRScheduler | None:
    """The scheduler the recipe names, for this optimizer. Raises ConfigError like `make_optimizer`."""
    named = recipe.lr_scheduler
    if named is None:
        return None
    kind = _named(lr_scheduler, named.type, LRScheduler, where, "lr_scheduler")
    args = dict(named.args)
    whole = recipe.train.epochs * (steps_an_epoch if named.interval == "step" else 1)
    known = inspect.signature(kind).parameters
    own = {"total_steps": whole, "T_max": whole, "max_lr": optimizer.param_groups[0]["lr"]}
    if kind is ReduceLROnPlateau:
        own["mode"] = "max" if recipe.monitored[1] else "min"
        if recipe.train.monitor == LAST:
            raise ConfigError(
                where, "lr_scheduler ReduceLROnPlateau waits for a metric, and train.monitor is last", "name one there"
            )
        if named.interval == "step":
            raise ConfigError(where, "lr_scheduler ReduceLROnPlateau waits for the validation", 'interval = "epoch"')
    args = {key: value for key, value in own.items() if key in known} | args
    _check_arguments(kind, named.args, where, "lr_scheduler")
    required = [name for name, parameter in known.items() if parameter.default is parameter.empty and name != "optimizer"]
    for name in required:
        if name in ("lr_lambda", "schedulers"):
            raise ConfigError(where, f"lr_scheduler {named.type} needs {name}, which no recipe can hold", "choose another type")
    missing = [name for name in required if name not in args]
    if missing:
        raise ConfigError(where, f"lr_scheduler {named.type} needs {', '.join(missing)}", "give it under lr_scheduler.args")
    with _told(where, "lr_scheduler.args"):
        schedule: LRScheduler = kind(optimizer, **args)
    if getattr(schedule, "total_steps", whole) < whole:
        said = f"lr_scheduler.args: a total of {getattr(schedule, 'total_steps', 0)} steps, and the training has {whole}"
        raise ConfigError(where, said, "leave it out: it is the whole training")
    return schedule


def _try(recipe: Recipe, where: str) -> None:
    """Go through the training's steps with weights that do not learn: torch finds some wrong values only then."""
    tried = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2, 2))]
    optimizer = make_optimizer(recipe, tried, where)
    named = recipe.lr_scheduler
    steps_an_epoch = 1 if named is None or named.interval == "epoch" or "total_steps" in named.args else 100
    schedule = make_scheduler(recipe, optimizer, steps_an_epoch, where)
    with _told(where, f"optimizer {recipe.optimizer.type} does not fit this training"):
        for parameter in tried:
            parameter.grad = torch.zeros_like(parameter)
        for _ in range(3):
            optimizer.step()
    with _told(where, "lr_scheduler.args"):
        for _ in range(min(recipe.train.epochs * steps_an_epoch, 1000)):
            if schedule:
                schedule.step(0.0) if isinstance(schedule, ReduceLROnPlateau) else schedule.step()


@contextmanager
def _told(where: str, key: str) -> Iterator[None]:
    """Turn whatever torch makes of a wrong value into a ConfigError: it compares, unpacks and asserts."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a schedule is made before the optimizer's first step
            yield
    except Exception as error:
        raise ConfigError(where, f"{key}: {_line(error)}") from error


def _named(module: types.ModuleType, name: str, base: type, where: str, key: str) -> Any:
    known = [n for n, kind in vars(module).items() if isinstance(kind, type) and issubclass(kind, base) and kind is not base]
    known = [n for n in known if not n.startswith("_")]
    if name not in known:
        raise ConfigError(where, f"{key}.type = {name!r} is none of torch's", closest(name, known))
    return getattr(module, name)


def _check_arguments(kind: type, args: Mapping[str, Any], where: str, key: str) -> None:
    known = {name: each for name, each in inspect.signature(kind).parameters.items() if name not in ("params", "optimizer")}
    for name, value in args.items():
        if name not in known:
            raise ConfigError(where, f"unknown key {key}.args.{name}: {kind.__name__} has no such argument", closest(name, known))
        if isinstance(known[name].default, (int, float)) and isinstance(value, str):
            raise ConfigError(where, f"{key}.args.{name} = {value!r}", f"a value like torch's own, {known[name].default}")


def _check_augmentation(augment: Augmentation, where: str) -> None:
    for each in dataclasses.fields(augment):
        settings = getattr(augment, each.name)
        for name, value in vars(settings).items():
            key = f"augment.{each.name}.{name}"
            if name == "p" and not 0 <= value <= 1:
                raise ConfigError(where, f"{key} = {value:g}", "how often: from 0 to 1")
            if isinstance(value, tuple) and value[0] > value[1]:
                raise ConfigError(where, f"{key} = {list(value)}", "the lower end first")
            if (name in ("sigma", "std", "bands", "frames") and value < 0) or ((each.name, name) == ("eq", "db") and value < 0):
                raise ConfigError(where, f"{key} = {value:g}", "at least 0")
            if name == "share" and not 0 <= value <= 1:
                raise ConfigError(where, f"{key} = {value:g}", "from 0 to 1")
            if name in ("low_hz", "high_hz") and not 1 <= value[0] <= value[1] <= 1e6:
                raise ConfigError(where, f"{key} = {list(value)}", "from 1 to 1,000,000 Hz")
            if name == "own" and not 0 <= value[0] <= value[1] <= 1:
                raise ConfigError(where, f"{key} = {list(value)}", "from 0 to 1")
            if name in ("rate", "t60_s") and not 0.01 <= value[0] <= value[1] <= 100:
                raise ConfigError(where, f"{key} = {list(value)}", "from 0.01 to 100")
            if name == "semitones" and not -12 <= value[0] <= value[1] <= 12:
                raise ConfigError(where, f"{key} = {list(value)}", "at most an octave, 12, up or down")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        return {name: _plain(item) for name, item in items.items() if item is not None}
    return dict(value) if isinstance(value, Mapping) else value


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
