"""The gate for names that come out of files.

The one place that turns a name in a checkpoint into an object.

A config is code that its author chose. A checkpoint is data, and may come from anybody, so a name
in it finds

- classes of torch.nn, torch.optim and torchmetrics, and members of torch's enumerations,
- classes and members of enumerations of the package that the loaded class is from, if something has
  imported them already,
- functions of the list `FUNCTIONS`, and defaults of the arguments of the loaded class,
- what was given to `raylit.allow`,

and nothing else: no attribute of an attribute, no module, nothing that a module has only imported.
What is found was defined where its name says. Looking up runs no code and imports nothing but the
libraries named above.

`describe` and `restore` are for hyperparameters that are no plain data. `find_public` is for the
`class_path` of hyperparameters that a LightningCLI kept, which may name a class where its package
re-exports it.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from types import FunctionType, ModuleType
from typing import Any, TypeVar

import torch
from torch import nn

from raylit.errors import ConfigError
from raylit.runtime.bounds import check_size

Description = dict[str, Any]
T = TypeVar("T")

LIBRARIES = ("torch.nn", "torch.optim", "torchmetrics")
KINDS = (nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, enum.Enum)

# Functions of torch that compute with tensors and do nothing else: none reads a file, loads code or
# changes a setting, so a partial of one with any arguments is harmless.
FUNCTIONS = {
    "torch.nn.functional": """
        celu celu_ elu elu_ gelu glu gumbel_softmax hardshrink hardsigmoid hardswish hardtanh
        hardtanh_ leaky_relu leaky_relu_ log_softmax logsigmoid mish prelu relu relu6 relu_ rrelu
        rrelu_ selu selu_ sigmoid silu softmax softmin softplus softshrink softsign tanh tanhshrink
        threshold threshold_

        binary_cross_entropy binary_cross_entropy_with_logits cosine_embedding_loss cross_entropy
        ctc_loss gaussian_nll_loss hinge_embedding_loss huber_loss kl_div l1_loss
        margin_ranking_loss mse_loss multi_margin_loss multilabel_margin_loss
        multilabel_soft_margin_loss nll_loss poisson_nll_loss smooth_l1_loss soft_margin_loss
        triplet_margin_loss triplet_margin_with_distance_loss

        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d alpha_dropout avg_pool1d
        avg_pool2d avg_pool3d batch_norm bilinear channel_shuffle conv1d conv2d conv3d
        conv_transpose1d conv_transpose2d conv_transpose3d cosine_similarity dropout dropout1d
        dropout2d dropout3d embedding embedding_bag feature_alpha_dropout fold grid_sample
        group_norm instance_norm interpolate layer_norm linear local_response_norm lp_pool1d
        lp_pool2d lp_pool3d normalize one_hot pad pairwise_distance pdist pixel_shuffle
        pixel_unshuffle rms_norm scaled_dot_product_attention unfold""",
    "torch.nn.init": """
        calculate_gain constant_ dirac_ eye_ kaiming_normal_ kaiming_uniform_ normal_ ones_
        orthogonal_ sparse_ trunc_normal_ uniform_ xavier_normal_ xavier_uniform_ zeros_""",
    "torch.special": "erf erfc erfinv exp2 expit expm1 gammaln log1p log_softmax logit softmax xlogy",
    "torch": """
        abs absolute acos acosh add addmm all allclose amax amin any argmax argmin asin asinh atan
        atan2 atanh baddbmm bmm cat cdist ceil celu celu_ clamp clip clone concat cos cosh cross
        cummax cummin cumprod cumsum diff div divide dot einsum eq erf erfc erfinv exp exp2 expm1
        fix flatten flip floor fmod frac ge gt hardshrink heaviside hypot isfinite isinf isnan kron
        le lerp log log10 log1p log2 log_softmax logaddexp logcumsumexp logit logsumexp lt matmul
        max maximum mean median min minimum mm mode mul multiply nan_to_num nanmean nanmedian
        nansum ne neg negative norm ones_like outer permute positive pow prelu prod quantile
        rand_like randn_like real reciprocal relu relu_ remainder reshape roll round rrelu rrelu_
        rsqrt selu selu_ sgn sigmoid sigmoid_ sign sin sinc sinh softmax sort sqrt square squeeze
        stack std std_mean sub subtract sum swapaxes t tan tanh tanh_ tensordot threshold
        threshold_ topk trace transpose tril triu trunc unflatten unsqueeze var var_mean where xlogy
        zeros_like""",
}

_allowed: dict[str, Any] = {}


def allow(*objects: T) -> T:
    """Let checkpoints name classes and functions beside those that are known to be harmless.

    Whoever writes a checkpoint can then have them called, with any arguments. Say it where they are
    defined, so that it also holds on workers.

    Args:
        objects: classes, or functions that are found by their names in a module.

    Returns:
        The first of them, so that it can be used as a decorator.

    Raises:
        ConfigError: one is neither, or has no name by which it could be found.

    Example:
        >>> @raylit.allow
        ... def swish(x):
        ...     return x * torch.sigmoid(x)
        >>> raylit.allow(torch.logdet, torch.nn.functional.mish)
    """
    if not objects:
        raise ConfigError("raylit.allow() was given nothing. Give classes or functions.")
    for one in objects:
        if not (isinstance(one, type) or inspect.isroutine(one)):
            raise ConfigError(f"raylit.allow({one!r}): give a class or a function.")
        path = _path_of(one)
        if not _is_name(path):
            raise ConfigError(
                f"raylit.allow({one!r}): it has no name by which it could be found again. Define it"
                " at the top level of a module."
            )
        _allowed[path] = one
    return objects[0]


# ---- from objects to names ----


def describe(value: object, cls: type) -> Description | None:
    """Return data from which `restore` makes `value` again, None if there is none that is exact.

    Functions of the packages of `cls` and of torch are described also if they are not in the list:
    whoever loads them has to allow them.

    Args:
        value: a hyperparameter that is no plain data.
        cls: the class of the module or datamodule that has it.
    """
    try:
        description = _describe(value)
        restored = _rebuild(description, lambda path: _find_to_write(path, cls))
    except (AttributeError, TypeError, ValueError):
        return None
    return description if "plain" not in description and _is_same(restored, value) else None


def _describe(value: object) -> Description:
    if isinstance(value, enum.Enum):
        return {"path": f"{type(value).__module__}:{type(value).__qualname__}.{value.name}"}
    if isinstance(value, type) or inspect.isroutine(value):
        return {"path": _path_of(value)}
    if isinstance(value, functools.partial):
        return {
            "partial": _describe(value.func),
            "args": [_describe(one) for one in value.args],
            "keywords": {name: _describe(one) for name, one in value.keywords.items()},
        }
    if dataclasses.is_dataclass(value):
        fields = {
            field.name: _describe(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init
        }
        return {"path": _path_of(type(value)), "fields": fields}
    return {"plain": value}


def _path_of(value: Any) -> str:
    # The __qualname__ of torch's own functions names a class that cannot be imported.
    name = value.__name__ if inspect.isbuiltin(value) else value.__qualname__
    return f"{value.__module__}:{name}"


def _is_same(one: object, other: object) -> bool:
    if isinstance(other, functools.partial) and isinstance(one, functools.partial):
        pairs = [
            (one.func, other.func),
            *zip(one.args, other.args, strict=True),
            *((one.keywords[key], other.keywords[key]) for key in other.keywords),
        ]
        return all(_is_same(*pair) for pair in pairs)
    return one is other or (type(one) is type(other) and bool(one == other))


# ---- from names to objects ----


def restore(description: object, cls: type) -> Any:
    """Return the value that `describe` described.

    Args:
        description: out of a checkpoint; it may be anything.
        cls: the class of the module or datamodule that is to have it.

    Raises:
        ValueError: it is no description, or names what a checkpoint may not name.
    """
    check_size(description)
    return _rebuild(description, lambda path: find(path, cls))


def _rebuild(description: object, finder: Callable[[str], object]) -> Any:
    if not isinstance(description, dict):
        raise ValueError(f"a {type(description).__name__} stands where a description is expected")
    if "plain" in description:
        return description["plain"]
    if "partial" in description:
        args, keywords = description.get("args", []), description.get("keywords", {})
        if not (isinstance(args, list) and isinstance(keywords, dict)):
            raise ValueError("it describes a partial whose arguments are no list and no mapping")
        function = _rebuild(description["partial"], finder)
        if not callable(function):
            raise ValueError(f"it describes a partial of {function!r}, which cannot be called")
        return functools.partial(
            function,
            *(_rebuild(one, finder) for one in args),
            **{_text(name): _rebuild(one, finder) for name, one in keywords.items()},
        )
    found = finder(_text(description.get("path")))
    if "fields" not in description:
        return found
    # A subclass of a dataclass that is none itself may have any __init__.
    if not (isinstance(found, type) and "__dataclass_fields__" in vars(found)):
        raise ValueError(f"{description['path']} is no dataclass")
    fields = description["fields"]
    if not isinstance(fields, dict):
        raise ValueError(f"the fields of {description['path']} are no mapping")
    return found(**{_text(name): _rebuild(one, finder) for name, one in fields.items()})


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} stands where a name is expected")
    return value


def find(path: str, cls: type) -> Any:
    """Return the object that a checkpoint names.

    Args:
        path: `package.module:Class`, `package.module:function` or `package.module:Enum.MEMBER`.
        cls: the class of the module or datamodule that is loaded.

    Raises:
        ValueError: it names nothing, or what a checkpoint may not name.

    Example:
        >>> find("torch.nn.modules.activation:ReLU", LitModel)
        <class 'torch.nn.modules.activation.ReLU'>
    """
    if not _is_name(path):
        raise ValueError(f"{path!r:.200} is no name of a class or function")
    known = {**_functions(), **{_path_of(one): one for one in defaults(cls)}, **_allowed}
    if path in known:
        return known[path]
    module, _, name = path.partition(":")
    is_library = _is_within(module, LIBRARIES)
    is_own = module.partition(".")[0] in _packages(cls)
    outer = _allowed.get(path.rpartition(".")[0])  # of an enumeration, one of its members
    if isinstance(outer, type) and issubclass(outer, enum.Enum):
        return _walk(module, name, path)
    if not (is_library or is_own or _is_within(module, ("torch",))):
        raise _refused(path, cls)
    if is_library:
        _import_library(module)
    found = _walk(module, name, path)
    kind = found if isinstance(found, type) else type(found)
    if is_own:
        is_good = isinstance(found, (type, enum.Enum)) and _is_written_in(kind, module)
    elif is_library:
        is_good = issubclass(kind, KINDS) or dataclasses.is_dataclass(kind)
    else:
        is_good = issubclass(kind, enum.Enum)
    if not is_good:
        raise _refused(path, cls)
    return found


def find_public(path: str, cls: type) -> Any:
    """Return the object that a dotted path names, such as a `class_path` in a checkpoint.

    It may stand anywhere in a library or package that `find` knows, as long as `find` knows it by
    the name that it was given where it was defined: `torch.nn.ReLU` is found as
    `torch.nn.modules.activation:ReLU`.

    Args:
        path: `package.module.Class` or `package.module.function`.
        cls: the class of the module or datamodule that is loaded.

    Raises:
        ValueError: it names nothing, or what a checkpoint may not name.
    """
    module, _, name = path.rpartition(".")
    if not _is_name(f"{module}:{name}"):
        raise ValueError(f"{path!r:.200} is no path of a class or function")
    if _is_within(module, LIBRARIES):
        _import_library(module)
    found = _variables(module).get(name)
    if not (isinstance(found, type) or inspect.isroutine(found)):
        raise _refused(f"{module}:{name}", cls)
    if find(_path_of(found), cls) is not found:
        raise _refused(f"{module}:{name}", cls)
    return found


def _walk(module: str, name: str, path: str) -> Any:
    """Return the object called `name` in an imported module.

    The way to it leads through nothing but classes that were defined there.
    """
    found: Any = None
    scope = _variables(module)
    parts = name.split(".")
    for number, part in enumerate(parts, 1):
        if isinstance(found, type) and issubclass(found, enum.Enum) and part in found.__members__:
            if number == len(parts):
                return found.__members__[part]
            break
        if part not in scope:
            raise ValueError(f"{path} is not there, or was not imported: import {module} before")
        found = scope[part]
        # not isinstance: an object can say that it is of another class
        if not issubclass(type(found), type):
            break
        if (found.__module__, found.__qualname__) != (module, ".".join(parts[:number])):
            raise ValueError(f"{path} was not defined there, but in {found.__module__}")
        scope = vars(found)
    else:
        return found
    raise ValueError(
        f"{path} is neither a class nor a member of an enumeration nor a function that a checkpoint"
        f" may name; {_remedy(path)}"
    )


def _is_written_in(cls: type, module: str) -> bool:
    """Tell whether the `__init__` of a class, if it has one, was written in a module.

    The `__module__` of a class can be set to any name.
    """
    own = vars(cls).get("__init__")
    if not isinstance(own, FunctionType):
        return True
    variables = getattr(inspect.unwrap(own), "__globals__", {})
    return bool(variables.get("__name__", module) == module)


def _find_to_write(path: str, cls: type) -> Any:
    """Return what `find` does, and any function of torch and of the packages of `cls`."""
    try:
        return find(path, cls)
    except ValueError:
        module, _, name = path.partition(":")
        if module.partition(".")[0] not in {"torch", "torchmetrics", *_packages(cls)}:
            raise
        found = _variables(module).get(name)
        if not (isinstance(found, type) or inspect.isroutine(found)):
            raise
        return found


def _variables(module: str) -> Mapping[str, Any]:
    found = sys.modules.get(module)
    return vars(found) if isinstance(found, ModuleType) else {}


def _import_library(module: str) -> None:
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{module} cannot be imported: {error}") from error


def _is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def _is_name(path: str) -> bool:
    module, _, name = path.partition(":")
    return all(part.isidentifier() for part in (*module.split("."), *name.split(".")))


def _packages(cls: type) -> set[str]:
    """Return the names of the packages of a module's class and of the modules it is derived from."""
    contract = next((one for one in cls.__mro__ if _is_within(one.__module__, ("raylit",))), cls)
    own = {one.__module__.partition(".")[0] for one in cls.__mro__ if issubclass(one, contract)}
    return own - {"raylit", "torch", "builtins"}


def defaults(cls: type) -> list[Any]:
    """Return the classes and functions that are defaults of the arguments of a class.

    Its author named them.
    """
    constructors = [vars(one).get("__init__") for one in cls.__mro__]
    values = [
        parameter.default
        for constructor in constructors
        if isinstance(constructor, FunctionType)
        for parameter in inspect.signature(constructor).parameters.values()
        if parameter.default is not inspect.Parameter.empty
    ]
    return [value for value in values if isinstance(value, type) or inspect.isroutine(value)]


@functools.cache
def _functions() -> dict[str, Any]:
    """Return the functions of `FUNCTIONS` by the names under which checkpoints have them."""
    found: dict[str, object] = {}
    for place, names in FUNCTIONS.items():
        module = importlib.import_module(place)
        for name in names.split():
            function = getattr(module, name, None)  # an older torch lacks some
            if function is not None:
                found[_path_of(function)] = found[f"{place}:{name}"] = function
    return found


def _refused(path: str, cls: type) -> ValueError:
    return ValueError(
        f"{path} is none of the classes and functions that a checkpoint of a {cls.__name__} may"
        f" name; {_remedy(path)}"
    )


def _remedy(path: str) -> str:
    """Return how to let a checkpoint name it."""
    return (
        "if you know what it is and trust the checkpoint, import it and say so before loading:"
        f" raylit.allow({path.replace(':', '.')})"
    )
