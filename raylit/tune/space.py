"""The search space as data: Ray Tune's words, nested, conditional, checked before the start."""

from __future__ import annotations

import inspect
import math
import numbers
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeGuard

import numpy as np
from ray import tune
from ray.tune.search.sample import Categorical, Domain, Float, Function, Integer

from raylit.errors import ConfigError, did_you_mean
from raylit.runtime.aliases import PlainData
from raylit.tune.aliases import Value, Values

# Each word is the function of ray.tune with the same name; `grid` is short for grid_search.
RANGES = (
    "uniform",
    "quniform",
    "loguniform",
    "qloguniform",
    "randint",
    "qrandint",
    "lograndint",
    "qlograndint",
)
WORDS = (*RANGES, "randn", "qrandn", "choice", "grid_search", "grid")
TAKES_A_LIST = ("choice", "grid_search", "grid")
SCOPES = ("model", "data", "trainer", "optimizer", "lr_scheduler")
WHOLE = ("model", "data", "optimizer", "lr_scheduler", "seed_everything")  # keys without a dot
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")

Key = tuple[str | int, ...]
Grid = Mapping[str, list[object]]  # of Ray Tune: its options stand under `grid_search`


class SweepError(ConfigError):
    """A setting of a sweep is wrong.

    Attributes:
        path: keys of a sweep file that lead to it.
    """

    def __init__(self, text: str, path: Key = ()) -> None:
        self.path = path
        super().__init__(text)


def read_space(space: Mapping[str, object]) -> dict[str, object]:
    """Return a space with Ray Tune's objects in place of words, by full names such as `model.lr`.

    Args:
        space: names to values. A value is an object of `ray.tune`, a mapping of one word to its
            arguments (`{"loguniform": [1e-4, 1e-1]}`), a constant, or a mapping of further names.
            Among the values of a choice may be mappings that hold words themselves: they count
            only where that one is chosen.

    Raises:
        SweepError: a key or word is unknown, or its arguments do not fit.
    """
    found: dict[str, object] = {}
    for key, value in space.items():
        for name, one in _named(str(key), value, ("space", key)):
            _check_name(name, ("space", key))
            if name in found:
                raise SweepError(f"The space names {name} twice.", ("space", key))
            found[name] = one
    return found


def numbers_of(values: object) -> PlainData:
    """Return data of a YAML file with numbers like 1e-4, which YAML takes for text, as numbers."""
    if isinstance(values, Mapping):
        return {key: numbers_of(value) for key, value in values.items()}
    if isinstance(values, list):
        return [numbers_of(value) for value in values]
    if isinstance(values, str) and NUMBER.fullmatch(values):
        return float(values)
    return values


def is_grid(value: object) -> TypeGuard[Grid]:
    """Tell whether a value is a grid of Ray Tune."""
    return (
        isinstance(value, Mapping)
        and set(value) == {"grid_search"}
        and isinstance(value["grid_search"], list)
    )


def is_swept(value: object) -> bool:
    """Tell whether a value differs between trials."""
    if isinstance(value, Domain) or is_grid(value):
        return True
    if isinstance(value, Mapping):
        return any(is_swept(one) for one in value.values())
    return isinstance(value, list) and any(is_swept(one) for one in value)


def domains(value: object) -> Iterator[object]:
    """Yield every domain and grid in a value, those within choices too."""
    if isinstance(value, Domain) or is_grid(value):
        yield value
    for inner in options_of(value) if _has_options(value) else _parts(value):
        yield from domains(inner)


def options_of(value: Categorical | Grid) -> list[Value]:
    """Return the options of a choice or a grid."""
    return list(value.categories if isinstance(value, Categorical) else value["grid_search"])


def _has_options(value: object) -> TypeGuard[Categorical | Grid]:
    return is_grid(value) or isinstance(value, Categorical)


def _parts(value: object) -> list[object]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list) else []


def combinations(value: object) -> int:
    """Return how many combinations the grids in a value have."""
    if is_grid(value):
        return sum(combinations(option) for option in value["grid_search"])
    return math.prod(combinations(part) for part in _parts(value))


def examples(value: object, num_drawn: int = 3) -> Iterator[Value]:
    """Yield values that a key may take: all that are listed, and samples of each domain."""
    if _has_options(value):
        for option in options_of(value):
            yield from examples(option, num_drawn)
    elif isinstance(value, Function):
        return  # depends on other values
    elif isinstance(value, Domain):
        for _ in range(num_drawn):
            yield value.sample()
    elif is_swept(value) and isinstance(value, Mapping):
        drawn = {name: list(examples(one, num_drawn)) for name, one in value.items()}
        for index in range(max(map(len, drawn.values()))):
            yield {name: some[index % len(some)] for name, some in drawn.items() if some}
    elif isinstance(value, list) and is_swept(value):
        drawn_items = [list(examples(one, num_drawn)) for one in value]
        for index in range(max(map(len, drawn_items))):
            yield [some[index % len(some)] for some in drawn_items if some]
    else:
        yield value


def flatten(config: Mapping[str, object]) -> dict[str, object]:
    """Return the values of a trial by full names.

    `{"model": {"class_path": A}}` has `model.class_path`.
    """
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            inner = flatten(value).items()
            flat.update((f"{key}.{name}", one) for name, one in inner)
        else:
            flat[key] = value
    return flat


def text_of(value: object) -> str:
    """Return a value of a space as a user would write it."""
    if is_grid(value):
        return "grid " + str([text_of(one) for one in value["grid_search"]])
    if isinstance(value, Categorical):
        return "choice " + str([text_of(one) for one in value.categories])
    if isinstance(value, Function):
        return "sample_from"
    if isinstance(value, Domain):
        return f"{str(value.get_sampler() or 'uniform').lower()} {value.domain_str}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {text_of(one)}" for key, one in value.items()) + "}"
    return str(value)


# ---- from words to objects ----


def _named(name: str, value: object, path: Key) -> Iterator[tuple[str, object]]:
    """Yield full names and values of one key of a space."""
    if isinstance(value, Mapping) and not is_grid(value) and _is_names(value, name, path):
        for key, one in value.items():
            yield from _named(f"{name}.{key}", one, (*path, key))
    else:
        yield name, _value(name, value, path)


def _is_names(value: Mapping[str, object], name: str, path: Key) -> bool:
    """Tell whether a mapping holds further names, rather than one word and its arguments."""
    words = [key for key in value if key in WORDS]
    if "class_path" in value:
        return False
    if "sample_from" in value:
        raise SweepError(
            f"{name}: sample_from takes a function, which no file can hold. Use it in Python, or"
            f" one of {', '.join(WORDS)}.",
            (*path, "sample_from"),
        )
    if not words:
        ((first, arguments), *others) = value.items() or [("", None)]
        near = did_you_mean(str(first), WORDS)
        if not value or (not others and isinstance(arguments, list)):
            raise SweepError(
                f"{name}: {first!r} is no word of a space.{near} There are: {', '.join(WORDS)}.",
                (*path, first),
            )
        return True
    if len(value) > 1:
        raise SweepError(
            f"{name}: {dict(value)!r} must be one word with its arguments, such as {{loguniform:"
            " [0.0001, 0.1]}.",
            path,
        )
    return False


def _value(name: str, value: object, path: Key) -> object:
    """Return a value with objects of Ray Tune in place of words, however deep."""
    if isinstance(value, Domain):
        if isinstance(value, Categorical):
            value.categories = [_value(name, one, path) for one in value.categories]
        if isinstance(value, (Float, Integer)):
            _check_range(name, "uniform", {"lower": value.lower, "upper": value.upper}, path)
        return value
    if is_grid(value):
        return {"grid_search": [_value(name, one, path) for one in value["grid_search"]]}
    if isinstance(value, np.generic):
        return value.item()  # else its text would stand in the record of the sweep
    if isinstance(value, list):
        return [_value(name, one, (*path, index)) for index, one in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    if len(value) == 1 and next(iter(value)) in WORDS:
        ((word, arguments),) = value.items()
        return domain(name, word, arguments, (*path, word))
    if not set(value) & {"class_path", "init_args"} and len(value) == 1:
        ((word, arguments),) = value.items()
        near = did_you_mean(str(word), WORDS)
        if near and isinstance(arguments, list):
            raise SweepError(f"{name}: {word!r} is no word of a space.{near}", (*path, word))
    return {key: _value(f"{name}.{key}", one, (*path, key)) for key, one in value.items()}


def domain(name: str, word: str, arguments: object, path: Key = ()) -> object:
    """Return Ray Tune's object for a word and its arguments.

    Raises:
        SweepError: they do not fit.
    """
    if word in TAKES_A_LIST:
        if not isinstance(arguments, list):
            raise SweepError(
                f"{name}: {word} does not take {arguments!r}: a list of values is wanted, such as"
                f" {{{word}: [1, 2]}}.",
                path,
            )
        if not arguments:
            raise SweepError(f"{name}: {word} has no values to choose from: it is empty.", path)
        inner = [_value(name, one, (*path, index)) for index, one in enumerate(arguments)]
        return tune.grid_search(inner) if word != "choice" else tune.choice(inner)
    function = getattr(tune, word)
    parameters = inspect.signature(function).parameters
    if isinstance(arguments, Mapping):
        for key in arguments:
            if key not in parameters:
                raise SweepError(
                    f"{name}: {word} has no argument {key!r}.{did_you_mean(str(key), parameters)}"
                    f" It has: {', '.join(parameters)}.",
                    (*path, key),
                )
        given = dict(arguments)
    elif isinstance(arguments, (list, tuple)):
        if len(arguments) > len(parameters):
            raise SweepError(
                f"{name}: {word} does not take {len(arguments)} arguments. It has:"
                f" {', '.join(parameters)}.",
                path,
            )
        given = dict(zip(parameters, arguments, strict=False))
    else:
        raise SweepError(
            f"{name}: {word} does not take {arguments!r}: give its arguments as a list, such as"
            f" {{{word}: [{', '.join(parameters)}]}}.",
            path,
        )
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise SweepError(f"{name}: {word} wants numbers, but {key} is {value!r}.", path)
    _check_range(name, word, given, path)
    try:
        return function(**given)
    except (TypeError, ValueError, AssertionError) as error:
        raise SweepError(f"{name}: {word} does not take {arguments!r}: {error}.", path) from error


def _check_range(name: str, word: str, given: Mapping[str, float], path: Key) -> None:
    """Refuse ranges that are wrong, but from which Ray Tune would sample all the same.

    Raises:
        SweepError: a range is empty or reversed, a bound is no whole number, or a quantum does not
            divide the bounds.
    """
    lower = given.get("lower")
    upper = given.get("upper")
    quantum = given.get("q")
    if lower is None or upper is None:
        return
    what = f"{name}: {word}: [{lower}, {upper}]"
    if lower == upper:
        raise SweepError(f"{what} is an empty range: give {upper} as a constant.", path)
    if lower > upper:
        raise SweepError(f"{what} is reversed: write [{upper}, {lower}].", path)
    if "int" in word:
        for bound in (lower, upper, quantum if quantum is not None else 1):
            if int(bound) != bound:
                raise SweepError(f"{what}: {bound} is no whole number.", path)
    if word in ("randint", "lograndint") and upper - lower == 1:
        raise SweepError(
            f"{what} holds {lower} alone, since the upper bound is left out: give it as a"
            " constant, or a greater bound.",
            path,
        )
    if quantum is not None:
        if quantum <= 0:
            raise SweepError(f"{what}: the quantum q={quantum} must be greater than 0.", path)
        for bound in (lower, upper):
            if not math.isclose(bound / quantum, round(bound / quantum), abs_tol=1e-9):
                raise SweepError(
                    f"{what}: the quantum q={quantum} does not divide the bound {bound}.", path
                )


def _check_name(name: str, path: Key) -> None:
    """Find out whether a key says whose argument it is.

    Raises:
        SweepError: it does not.
    """
    if name in WHOLE:
        return
    scope, _, argument = name.partition(".")
    if scope not in SCOPES or not argument:
        options = (*SCOPES, "seed_everything")
        raise SweepError(
            f"The key {name!r} of the space does not say whose argument it"
            f" is.{did_you_mean(scope, options)} Write model.{argument or scope}, data.... or"
            " trainer....",
            path,
        )


def check_point(point: Mapping[str, Value], space: Mapping[str, object], path: Key) -> Values:
    """Return a point to try first, if it lies in the space.

    Raises:
        SweepError: it names a key that is not swept, or a value that is not in its range.
    """
    if not isinstance(point, Mapping):
        raise SweepError(
            f"points: {point!r} is no mapping: give names and values, such as {{model.lr: 0.01}}.",
            path,
        )
    for key, value in point.items():
        if key not in space:
            raise SweepError(
                f"points: {key!r} is no key of the space.{did_you_mean(key, space)}", (*path, key)
            )
        where = space[key]
        if _has_options(where) and not fits(value, where):
            raise SweepError(
                f"points: {key} is {value!r}, which is none of {options_of(where)}.", (*path, key)
            )
        lower, upper = getattr(where, "lower", None), getattr(where, "upper", None)
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        is_range = lower is not None and upper is not None
        if is_range and not (is_number and lower <= value <= upper):
            raise SweepError(
                f"points: {key} is {value!r}, which is not between {lower} and {upper}.",
                (*path, key),
            )
        _check_step(key, value, where, (*path, key))
    return dict(point)


def _check_step(key: str, value: Value, where: object, path: Key) -> None:
    """See that a value is one that a range of whole numbers, or of steps, has."""
    step = getattr(getattr(where, "sampler", None), "q", None)
    # as in Ray: without steps the upper end is no value of a range of whole numbers
    last = getattr(where, "upper", 0) - (step is None)
    if isinstance(where, Integer) and (value != int(value) or value > last):
        raise SweepError(
            f"points: {key} is {value!r}, which is no whole number from {where.lower} to {last}.",
            path,
        )
    if step is not None and not math.isclose(value / step, round(value / step), abs_tol=1e-9):
        raise SweepError(f"points: {key} is {value!r}, which is no multiple of {step}.", path)


def nearest(value: Value, where: object) -> Value:
    """Return the nearest number that a range has; anything else as it is.

    Args:
        value: a number.
        where: a range, with or without steps, or another dimension.

    Example:
        >>> from ray import tune
        >>> nearest(1.2, tune.uniform(0, 1))
        1.0
    """
    lower, upper = getattr(where, "lower", None), getattr(where, "upper", None)
    if lower is None or upper is None or not isinstance(value, numbers.Real):
        return value
    step = getattr(getattr(where, "sampler", None), "q", None)
    if step is not None:
        value = min(max(round(value / step) * step, lower), upper)
    else:  # as in Ray: without steps the upper end is no value of a range of whole numbers
        value = min(max(value, lower), upper - isinstance(where, Integer))
    return int(value) if isinstance(where, Integer) else float(value)


def fits(value: object, where: object) -> bool:
    """Tell whether a value may have come from a dimension, or from one option of a choice.

    Args:
        value: as it was drawn, or as a record of it has it, with lists in place of tuples.
        where: a range, a choice, a constant, or a mapping or list of such.
    """
    if isinstance(where, Mapping) and isinstance(value, Mapping) and not is_grid(where):
        return set(value) <= set(where) and all(fits(value[key], where[key]) for key in value)
    if _has_options(where):
        return any(fits(value, one) for one in options_of(where))
    if isinstance(where, (Float, Integer)):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return False
        number = float(value)
        if not math.isfinite(number):
            return False
        return math.isclose(number, nearest(number, where), rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(where, Domain):
        return True  # a function
    if isinstance(where, (list, tuple)) and isinstance(value, (list, tuple)):
        return len(value) == len(where) and all(map(fits, value, where))
    return bool(value == where)


def nearest_option(value: object, options: Sequence[object]) -> int | None:
    """Return which option of a choice a value came from, or None."""
    return next((index for index, one in enumerate(options) if fits(value, one)), None)
