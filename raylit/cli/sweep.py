"""`raylit tune`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import yaml

from raylit.cli import report
from raylit.cli.config import Config, instantiate, make_parser, parse
from raylit.cli.optimizer import give_optimizer
from raylit.cli.run import make_trainer
from raylit.cli.source import Source, read_file
from raylit.errors import ConfigError
from raylit.runtime.secrets import without_secrets

NUM_DRAWN = 3  # values of a sampled key that are tried out before anything starts


def tune(args: list[str], sweep: str | None, print_config: bool) -> None:
    """Run the sweep that the file `sweep` describes over the config of `args`.

    Raises:
        ConfigError: something is wrong; nothing was started.
    """
    config = parse("tune", args, needs_model=not print_config)
    if print_config:
        print(without_secrets(config.text), end="")
        return
    if sweep is None:
        raise ConfigError(
            "the file that describes the sweep is missing: --sweep configs/sweeps/digits.yaml."
        )
    source = read_file(sweep, "--sweep")
    from raylit.tune import (
        SweepSpec,
        Tuner,
    )  # Ray is loaded only once the files are known to be good

    try:
        spec = SweepSpec.from_dict(source.values)
    except ConfigError as error:
        raise ConfigError(f"{sweep}: {error}") from error
    check_space(config, args, source, spec.space)
    config.seed()
    config.make_model_and_data()  # what cannot be made must not fail in every trial
    trainer = make_trainer(config)
    data = Component(config, "data") if config.values.data is not None else None
    result = Tuner(trainer).sweep(Component(config, "model"), data, spec=spec)
    report.end_of_sweep(result, trainer, args)


class Component:
    """Makes the module or the datamodule of a config, with some of its arguments replaced.

    Each trial calls it in its own process.

    Args:
        config: the whole config.
        key: `model` or `data`.
    """

    def __init__(self, config: Config, key: str) -> None:
        whole = yaml.safe_load(config.text)
        keys = ("model", "optimizer", "lr_scheduler") if key == "model" else ("data",)
        self.key = key
        self.values = {name: whole[name] for name in keys if name in whole}
        self.folder = os.getcwd()

    def __call__(self, **arguments: Any) -> Any:
        """Return a new object; `arguments` may reach deeper: `{"encoder.width": 8}`."""
        if self.folder not in sys.path:
            sys.path.insert(0, self.folder)
        parser = make_parser("tune", needs_model=False)
        flags = [f"--{self.key}.{name}={json.dumps(value)}" for name, value in arguments.items()]
        values = parser.parse_args(flags, parser.parse_object(self.values))
        made = instantiate(parser, values)[self.key]
        if self.key == "model":
            give_optimizer(made, values.optimizer, values.lr_scheduler)
        return made


def check_space(config: Config, args: list[str], source: Source, space: dict[str, Any]) -> None:
    """Try out every key of a space with values it may take.

    Raises:
        ConfigError: the config has no such key, or a value does not fit; the text says where in the
            sweep file.
    """
    for key, values in space.items():
        for value in examples(values):
            flag = f"--{key}={json.dumps(value, default=str)}"
            try:
                parse(config.command, [*args, flag])
            except ConfigError as error:
                raise ConfigError(
                    f"{source.where(('space', key))}: {str(error).removeprefix('--')}"
                ) from error


def examples(values: Any) -> Iterator[Any]:
    """Yield values that a key of a space may take.

    All that are listed, some of those that are sampled.
    """
    if isinstance(values, dict) and "grid_search" in values:
        yield from values["grid_search"]
    elif hasattr(values, "categories"):
        yield from values.categories
    elif hasattr(values, "sample"):
        yield from (values.sample() for _ in range(NUM_DRAWN))
    else:
        yield values
