"""`raylit tune`."""

from __future__ import annotations

import copy
import functools
import os
import shlex
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from raylit.cli import items, report
from raylit.cli.config import Config, ConfigReader, load_yaml
from raylit.cli.diagnosis import nearest
from raylit.cli.record import KeepConfig
from raylit.cli.source import ConfigSource, as_flag, read_arguments, read_file, with_flags
from raylit.core.datamodule import LightningDataModule
from raylit.core.hooks import is_overridden
from raylit.core.module import LightningModule
from raylit.errors import ConfigError, did_you_mean
from raylit.loggers import MLFlowLogger
from raylit.runtime.aliases import Arguments, PlainDict
from raylit.runtime.masked_config import mask_config
from raylit.runtime.messages import info
from raylit.runtime.rng import seed_everything
from raylit.runtime.secrets import without_secrets

if TYPE_CHECKING:
    from raylit.trainer.trainer import Trainer
    from raylit.tune import SweepResult, SweepSpec
    from raylit.tune.aliases import Values
    from raylit.tune.trial import Made

CONFIG = "config.yaml"  # kept in the sweep's folder, for `raylit tune --resume NAME`
SWEEP = "sweep.yaml"
LENGTHS = ("--trainer.max_epochs", "--trainer.max_steps", "--trainer.max_time")


def tune(args: list[str], options: Namespace, reader: ConfigReader) -> None:
    """Run the sweep that the file `--sweep` describes over the config of `args`.

    Args:
        args: the flags that are keys of the config, and --config.
        options: the other flags.
        reader: reads the config.

    Raises:
        ConfigError: something is wrong; nothing was started.
    """
    sweep = options.sweep
    if sweep is None and options.resume is not None:
        if options.resume is True:
            options.resume = _newest_left(args)
        args, sweep = _files_of(options.resume, args)
    config = reader.read("tune", args, needs_model=not options.print_config)
    if options.print_config:
        print(mask_config(config.text), end="")
        return
    _check_flags(options)
    if options.behind_retrain:
        reader.read("tune", [*args, *options.behind_retrain])
    if options.auto and options.resume is None:
        sweep = _propose(config, args, options, reader)
    source = _sweep_file(sweep, options)
    # Ray is loaded only once the files are known to be good
    from raylit.tune.space import SweepError
    from raylit.tune.sweep import run_sweep

    spec, recipe = _described(config, args, source, reader)
    try:
        config.seed()
        _, data = config.make_model_and_data()  # what cannot be made must not fail in every trial
        trainer = config.make_trainer()
        _check_retrain(options, trainer, data)
        with open(source.name, encoding="utf-8") as file:
            text = yaml.safe_dump(source.values) if options.of_sweep else file.read()
        files = {CONFIG: mask_config(config.text), SWEEP: mask_config(text)}
        _say_overruled(config, source, spec.space)
        result = run_sweep(
            trainer,
            recipe,
            spec,
            resume=options.resume or False,
            files=files,
            command=functools.partial(_to_go_on, args, sweep, options, reader.program),
        )
    except SweepError as error:
        raise ConfigError(f"{source.where(error.path)}: {error}") from error
    report.end_of_sweep(result, reader.program, args, options)
    if options.auto:
        _test_best(recipe, result, options.average or 1)
    if options.retrain:
        _retrain(recipe, result, options, reader)


def _to_go_on(
    args: list[str], sweep: str | None, options: Namespace, program: str, name: str
) -> str:
    """Return the command that goes on with the sweep of a name."""
    file = [] if sweep is None else ["--sweep", sweep]
    flags = report.again([*args, *options.of_sweep, *file, "--resume", name], options)
    if options.retrain:  # behind it stand the flags of its fit
        value = [] if options.retrain == "all" else [options.retrain]
        flags = [*flags, "--retrain", *value, *options.behind_retrain]
    return without_secrets(f"{program} tune {shlex.join(flags)}")


def check(args: list[str], options: Namespace, reader: ConfigReader) -> Config:
    """Return the config of a sweep that is to run elsewhere, after all that can be tried out here.

    Args:
        args: the flags that are keys of the config, and --config.
        options: the other flags.
        reader: reads the config.

    Raises:
        ConfigError: something is wrong.
    """
    if options.sweep is None and options.resume not in (None, True):
        raise ConfigError(
            f"--resume {options.resume} with --on: the files of that sweep are on the cluster. Give"
            " --config and --sweep as before, too."
        )
    config = reader.read("tune", args)
    _check_flags(options)
    if options.behind_retrain:
        reader.read("tune", [*args, *options.behind_retrain])
    if not options.auto:
        _described(config, args, _sweep_file(options.sweep, options), reader)
    return config


def _sweep_file(sweep: str | None, options: Namespace) -> ConfigSource:
    """Return the values of the sweep file, with the flags over them.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    if sweep is None:
        raise ConfigError(
            "the file that describes the sweep is missing: --sweep configs/sweeps/digits.yaml. Or"
            " have one made: --auto."
        )
    return with_flags(read_file(sweep, "--sweep"), options.of_sweep, "sweep")


def _described(
    config: Config, args: list[str], source: ConfigSource, reader: ConfigReader
) -> tuple[SweepSpec, ConfigRecipe]:
    """Return the sweep that a file describes, and the recipe for its trials.

    Raises:
        ConfigError: something in it is wrong.
    """
    from raylit.tune import SweepSpec
    from raylit.tune.space import SweepError

    try:
        spec = SweepSpec.from_dict(source.values)
        _refuse_fixed(config, source, spec.swept)
        recipe = ConfigRecipe(
            _plain(config), list(args), os.getcwd(), source, reader, spec.trainer_settings
        )
        recipe.check(spec.space)
    except SweepError as error:
        raise ConfigError(f"{source.where(error.path)}: {error}") from error
    return spec, recipe


def _check_flags(options: Namespace) -> None:
    """Find flags that contradict each other, or whose values are wrong.

    Raises:
        ConfigError: there is one.
    """
    from raylit.tune.retrain import ON
    from raylit.tune.space import SweepError
    from raylit.tune.stops import seconds

    if options.retrain is not None and options.retrain not in ON:
        raise ConfigError(
            f"--retrain {options.retrain}: fit on what?{did_you_mean(options.retrain, ON)} Give"
            f" one of {', '.join(ON)}."
        )
    if options.auto and options.sweep is not None:
        raise ConfigError("--auto makes the sweep file that --sweep names. Leave one of them out.")
    for name in ("budget", "average"):
        if getattr(options, name) is not None and not options.auto:
            instead = "stop: {time_budget: 10m} in the sweep file" if name == "budget" else "--auto"
            raise ConfigError(f"--{name} belongs to --auto. Add it, or use {instead}.")
    if options.average is not None and options.average < 1:
        raise ConfigError(f"--average {options.average}: give how many, at least 1.")
    if options.budget is not None:
        try:
            seconds(options.budget)
        except SweepError as error:
            raise ConfigError(f"--budget {options.budget}: give a time such as 10m.") from error


def _propose(config: Config, args: list[str], options: Namespace, reader: ConfigReader) -> str:
    """Write a sweep file for a config, and print it; returns its path."""
    from raylit.tune.auto import propose

    recipe = ConfigRecipe(
        _plain(config), list(args), os.getcwd(), ConfigSource("--auto", {}), reader
    )
    config.seed()
    proposal = propose(
        recipe, reader.described(recipe.base), "auto", options.budget, options.average or 1
    )
    number = 1
    while os.path.exists(path := "auto.yaml" if number == 1 else f"auto-{number}.yaml"):
        number += 1
    again = without_secrets(f"{reader.program} {shlex.join(['tune', *args, '--sweep', path])}")
    head = f"Written by raylit tune --auto. Edit it, and run\n  {again}"
    text = proposal.text(head)
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)
    print(f"{text}\nThis is {path}.", flush=True)
    return path


def _test_best(recipe: ConfigRecipe, result: SweepResult, average: int) -> None:
    """Test the best trial, and the average of its checkpoints, on data that no trial has seen."""
    from raylit.tune.average import checkpoints_beside, write_average

    best = result.best
    made = recipe(best.config)
    has_data = made.data is not None and is_overridden(
        "test_dataloader", made.data, LightningDataModule
    )
    if not has_data or not is_overridden("test_step", made.model, LightningModule):
        print("No test: the data has no test_dataloader, or the model no test_step.")
        return
    if best.checkpoint is None:
        print(f"No test: {best.name} has saved no checkpoint.")
        return
    own = next((one for one in made.trainer.loggers if isinstance(one, MLFlowLogger)), None)
    logger: MLFlowLogger | bool = False
    if own is not None and best.run_id is not None:  # into the run of the trial
        arguments: Arguments = own.config_arguments()  # to ask it for more would begin a run
        logger = MLFlowLogger(**arguments, run_id=best.run_id)
    rows: list[tuple[str, str]] = []

    def test(what: str, checkpoint: str, logger: MLFlowLogger | bool) -> None:
        trainer = made.trainer.replaced(logger=logger)
        (found,) = trainer.test(
            made.model, datamodule=made.data, ckpt_path=checkpoint, verbose=False
        )
        values = "  ".join(f"{name} {value:.4g}" for name, value in found.items())
        rows.append(("test", f"{what}: {values}"))

    test(best.name, best.checkpoint, logger)
    several = checkpoints_beside(best.checkpoint) if average > 1 else []
    if len(several) > 1:
        path = write_average(several)
        test(f"average of its {len(several)} best, {report.shown(path)}", path, False)
    report.print_rows(rows)


def _check_retrain(options: Namespace, trainer: Trainer, data: LightningDataModule | None) -> None:
    """Find out before any trial whether the fit after them can be made.

    Raises:
        ConfigError: it cannot.
    """
    from raylit.tune.retrain import INSTEAD, Joined

    if options.retrain is None:
        return
    if options.retrain == "train":
        return
    if data is None:
        raise ConfigError(
            f"--retrain: there is no datamodule whose data could be joined. {INSTEAD}"
        )
    data.trainer = trainer  # which its hooks may ask
    data.prepare_data()
    data.setup("fit")
    Joined(data)()


def _retrain(
    recipe: ConfigRecipe, result: SweepResult, options: Namespace, reader: ConfigReader
) -> None:
    """Fit once more with the best values, and the flags behind --retrain."""
    from raylit.tune.process import seed_of
    from raylit.tune.retrain import Joined, without_validation

    flags: list[str] = [*options.behind_retrain]
    best = result.best
    epoch = best.epoch
    names = {flag.partition("=")[0] for flag in options.behind_retrain}
    is_joined = options.retrain == "all"
    if is_joined and epoch is not None and not names & set(LENGTHS):
        # without validation to tell which is best
        flags += ["--trainer.max_epochs", str(epoch + 1)]
    with tempfile.TemporaryDirectory() as folder:  # the kept one has no secrets
        file = Path(folder, os.path.basename(result.best_config))
        assert result.spec.seed is not None, "drawn when the sweep began"
        seed = seed_of(result.spec.seed, best.number)
        file.write_text(recipe.best_config(result.best_values, seed), encoding="utf-8")
        config = reader.read("fit", ["--config", str(file), *flags])
    config.seed()
    model, data = config.make_model_and_data()
    trainer = config.make_trainer([KeepConfig(config.text)])
    if is_joined:
        assert data is not None, "checked before the sweep"
        trainer = without_validation(trainer)
        data.train_dataloader = Joined(data)  # type: ignore[method-assign]
    report.begin("fit", trainer, model, data, None)
    started = time.time()
    done = trainer.fit(model, datamodule=data)
    again = report.again(["--config", result.best_config, *flags], options)
    report.end_of_fit(done, trainer, time.time() - started, again, reader.program)


def _newest_left(args: list[str]) -> str:
    """Return the folder of the newest sweep that has not come to its end.

    Raises:
        ConfigError: there is none whose files are kept.
    """
    from raylit.tune.folders import closed, is_running
    from raylit.tune.record import FILE

    records = _records(args)
    folders = [str(path.parent) for path in Path(records).glob(f"*/{FILE}")]
    left = [
        folder
        for folder in folders
        if closed(folder) != "success" and not is_running(folder) and _has_files(folder)
    ]
    if not left:
        raise ConfigError(
            f"--resume: no sweep in {os.path.abspath(records)} is left to go on with. Give its"
            " name or folder, or --config and --sweep as before."
        )
    newest = max(left, key=lambda folder: os.path.getmtime(os.path.join(folder, FILE)))
    info(f"The newest sweep that has not come to its end: {os.path.basename(newest)}.")
    return newest


def _records(args: list[str]) -> str:
    """Return the folder of the sweeps: below the root folder that a flag gives, or here."""
    key = "--trainer.default_root_dir"
    given = [source.values for source in read_arguments(args) if source.name == key]
    root = given[-1]["trainer"]["default_root_dir"] if given else "."
    return os.path.join(str(root), "raylit_runs")


def _has_files(folder: str) -> bool:
    return all(os.path.isfile(os.path.join(folder, file)) for file in (CONFIG, SWEEP))


def _files_of(name: str, args: list[str]) -> tuple[list[str], str]:
    """Return the flags and the sweep file of a sweep that is known by its name or folder alone.

    Raises:
        ConfigError: there is no such sweep here.
    """
    records = _records(args)
    folder = name if os.path.isdir(name) else os.path.join(records, name)
    if not _has_files(folder):
        there = sorted(os.listdir(records)) if os.path.isdir(records) else []
        raise ConfigError(
            f"--resume {name}: there is no such sweep in {os.path.abspath(records)}."
            f"{nearest(name, there)} Give its folder, or --config and --sweep as before."
        )
    return ["--config", os.path.join(folder, CONFIG), *args], os.path.join(folder, SWEEP)


def _refuse_fixed(config: Config, source: ConfigSource, swept: Sequence[str]) -> None:
    """Find keys that the sweep varies and a flag fixes.

    Raises:
        ConfigError: there is one; which of the two is meant cannot be known.
    """
    for key in swept:
        if "." in key and _is_flag(config, key):  # a component that is swept replaces it
            raise ConfigError(
                f"--{key} fixes what the sweep varies ({_where(source, key)}). Leave one of the two"
                " out."
            )


def _say_overruled(config: Config, source: ConfigSource, space: Mapping[str, object]) -> None:
    """Say which flags no trial sees, since the sweep gives the same keys."""
    for key, value in space.items():
        if _is_flag(config, key):
            info(f"--{key} is not used: {_where(source, key)} gives {value!r} to all trials.")


def _is_flag(config: Config, key: str) -> bool:
    return any(
        given.root is None and given.name.removeprefix("--") == key for given in config.sources
    )


@dataclass
class ConfigRecipe:
    """Makes the objects of a config with some values replaced, for each trial in its process.

    Attributes:
        base: the config as plain data.
        args: the flags that it came from.
        folder: where the user's modules are found.
        source: the sweep file.
        reader: reads configs, in the trials' processes too.
        settings: arguments of the Trainer that follow from the sweep's resources.
    """

    base: PlainDict
    args: list[str]
    folder: str
    source: ConfigSource
    reader: ConfigReader
    settings: Arguments = field(default_factory=dict)

    def __call__(self, values: Values) -> Made:
        """Return the objects of a trial with these values, by full names such as `model.lr`."""
        from raylit.tune.trial import Made

        seed = values.get("seed_everything")
        if seed is not None and not isinstance(seed, bool):
            seed_everything(int(seed), workers=True, verbose=False)
        config = self._parsed(values)
        quiet = {"enable_progress_bar": False, "enable_model_summary": False}
        trainer = config.make_trainer(**{**self.settings, **quiet})
        model, data = config.make_model_and_data()
        return Made(trainer, model, data)

    def __getstate__(self) -> dict[str, object]:
        # Nodes of YAML are many
        return {
            **vars(self),
            "source": ConfigSource(self.source.name, {}),
        }

    def flags(self, values: Mapping[str, object]) -> list[str]:
        """Return flags that give these values, those of whole components first.

        Raises:
            ConfigError: a key names a callback or logger that is not in the config.
        """
        trainer = copy.deepcopy(self.base.get("trainer", {}))
        changed: set[str] = set()
        flags: list[str] = []
        for key in sorted(values, key=lambda key: key.count(".")):
            if items.is_named(key):
                changed.add(items.put(trainer, key, values[key]))
            elif key != "seed_everything":
                flags.append(self._flag(key, values))
        flags += [f"--trainer.{name}={as_flag(trainer[name])}" for name in sorted(changed)]
        return flags

    def _flag(self, key: str, values: Mapping[str, object]) -> str:
        """Return the flag of one of some values.

        A text is given without quotes, which would be read as part of it. One that would be read as
        something else (`off`, `1.10`, `a: b`) is given in a mapping, where it has them.
        """
        value = values[key]
        above = key.rpartition(".")[0]
        if not isinstance(value, str):
            return f"--{key}={as_flag(value)}"
        if not above or _is_read_as_text(value):
            return f"--{key}={value}"
        beside = {one: values[one] for one in values if one.rpartition(".")[0] == above}
        own = {one.rpartition(".")[2]: given for one, given in beside.items()}
        return f"--{above}={as_flag({**_entries(self.base, above), **own})}"

    def check(self, space: Mapping[str, object]) -> None:
        """Try out every key of a space with values it may take.

        Raises:
            ConfigError: the config has no such key, or a value does not fit; the text says where in
                the sweep file.
        """
        from raylit.tune.space import examples

        for key, values in space.items():
            for value in examples(values):
                try:
                    self.reader.read("tune", [*self.args, *self.flags({key: value})])
                except ConfigError as error:
                    text = str(error).removeprefix("--")
                    raise ConfigError(f"{_where(self.source, key)}: {text}") from error

    def best_config(self, values: Mapping[str, object], seed: int) -> str:
        """Return the config with which `raylit fit --config` repeats a trial."""
        config = self._parsed(values)
        if "seed_everything" not in values:
            config.values.seed_everything = seed
        return str(config.parser.dump(config.values))

    def _parsed(self, values: Mapping[str, object]) -> Config:
        if self.folder not in sys.path:
            sys.path.insert(0, self.folder)
        return self.reader.again(self.base, self.flags(values))


def _plain(config: Config) -> PlainDict:
    whole: dict[str, object] = yaml.safe_load(config.text)
    return {key: value for key, value in whole.items() if key not in ("config", "ckpt_path")}


def _is_read_as_text(text: str) -> bool:
    try:
        return bool(load_yaml(text) == text)
    except yaml.YAMLError:
        return False


def _entries(base: PlainDict, key: str) -> PlainDict:
    """Return what an argument that is a mapping holds, all of which a flag for it replaces.

    Nothing for the arguments of a component, among which a flag replaces those it names.
    """
    found: object = base
    for part in key.split("."):
        if isinstance(found, Mapping) and "class_path" in found and part not in found:
            found = found.get("init_args")
        found = found.get(part) if isinstance(found, Mapping) else None
    is_argument = "." in key and not key.endswith((".init_args", ".dict_kwargs"))
    if is_argument and isinstance(found, Mapping) and "class_path" not in found:
        return dict(found)
    return {}


def _where(source: ConfigSource, key: str) -> str:
    """Return in words where a key of the space stands, be it nested or in one piece."""
    path: list[str | int] = ["space"]
    values = source.values.get("space")
    rest = key
    while rest and isinstance(values, Mapping):
        found = next((one for one in values if rest == one or rest.startswith(f"{one}.")), None)
        if found is None:
            break
        path.append(found)
        values = values[found]
        rest = rest[len(found) + 1 :]
    return source.where(path)
