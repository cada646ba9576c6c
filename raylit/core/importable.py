"""The gate for names that come out of files.

The one place that turns a name in a checkpoint into an object.

A config is code that its author chose. A checkpoint is data, and may come from anybody, so a name
in it finds

- classes of torch.nn, torch.optim and torchmetrics, and members of torch's enumerations,
- classes and members of enumerations of the package that the loaded class is from, if something has
  imported them already,
- functions of the list `FUNCTIONS`, and defaults of the arguments of the loaded class,
- classes and functions given to `raylit.allow`,

and nothing else: no attribute of an attribute, no module, nothing that a module has only imported.
An object that is found was defined where its name says. Looking up runs no code and imports nothing
but the libraries named above.

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

# Where modules are defined that a checkpoint may have made: nothing there reads a file.
MADE_AGAIN = (
    "torchmetrics.aggregation",
    "torchmetrics.classification",
    "torchmetrics.clustering",
    "torchmetrics.collections",
    "torchmetrics.nominal",
    "torchmetrics.regression",
    "torchmetrics.retrieval",
    "torch.nn.modules.activation",
    "torch.nn.modules.loss",
)
LARGEST_ARGUMENT = 4096  # such as a number of classes, whose square may be a size
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
    "torch.special": (
        "erf erfc erfinv exp2 expit expm1 gammaln log1p log_softmax logit softmax xlogy"
    ),
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

_allowed: dict[str, object] = {}


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
        is_exact = not _is_plain(description) and _is_same(restored, value)
    except Exception:  # constructors and comparisons of any class run here
        return None
    return description if is_exact else None


def _is_plain(description: Description) -> bool:
    items: Any = description.get("list", description.get("tuple", ()))
    return "plain" in description or (
        not {"path", "partial", "module"} & set(description) and all(map(_is_plain, items))
    )


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
    if isinstance(value, nn.Module):
        return _describe_module(value)
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return {type(value).__name__: [_describe(one) for one in value]}
    if dataclasses.is_dataclass(value):
        fields = {
            field.name: _describe(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.init
        }
        return {"path": _path_of(type(value)), "fields": fields}
    return {"plain": value}


def _describe_module(value: nn.Module) -> Description:
    """Return class and arguments of a module that holds nothing but its constructor's arguments.

    Constructors keep their arguments in attributes of the same names, as a rule; whether they did
    is seen when the module is made again and compared.

    Raises:
        ValueError: it is not of the kinds that a checkpoint may have made.
    """
    kind = type(value)
    _check_made_again(kind)
    arguments: dict[str, object] = {}
    if kind.__qualname__ == "MetricCollection":
        collection: Any = value
        named = dict(collection.items(keep_base=True, copy_state=False))
        # those that were given as a list have the names of their classes, and its order
        by_class = [type(one).__name__ for one in named.values()] == list(named)
        arguments = {
            "metrics": list(named.values()) if by_class else named,
            "prefix": collection.prefix,
            "postfix": collection.postfix,
        }
    else:
        for name, parameter in inspect.signature(kind).parameters.items():
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            if hasattr(value, name):
                arguments[name] = getattr(value, name)
            elif parameter.default is parameter.empty:
                raise ValueError(f"{kind.__qualname__} does not keep its argument {name}")
    return {
        "module": _path_of(kind),
        "arguments": {name: _describe_argument(one) for name, one in arguments.items()},
        "state": _state_of(value),
    }


def _state_of(module: nn.Module) -> dict[str, object]:
    """Return the state of a metric: its tensors, and how often it was updated."""
    names = vars(module).get("_defaults", {})
    kept = {name: getattr(module, name) for name in names}
    state = {
        name: one.detach().cpu() for name, one in kept.items() if isinstance(one, torch.Tensor)
    }
    updates = vars(module).get("_update_count", 0)
    return {"tensors": state, "updates": updates} if updates else {}


def _set_state(module: nn.Module, state: object) -> None:
    """Restore the state of a metric that was made again.

    Raises:
        ValueError: it has no such states.
    """
    if not isinstance(state, dict):
        raise ValueError("it describes the state of a metric that is none")
    names = vars(module).get("_defaults", {})
    for name, value in state.get("tensors", {}).items():
        own = names.get(name)
        if not (isinstance(own, torch.Tensor) and isinstance(value, torch.Tensor)):
            raise ValueError(f"it describes a state {name!r:.50} that the metric has not")
        setattr(module, name, value.clone())
    if "updates" in state:
        vars(module)["_update_count"] = int(state["updates"])


def _describe_argument(value: object) -> Description:
    if isinstance(value, dict) and any(isinstance(one, nn.Module) for one in value.values()):
        return {"dict": {name: _describe(one) for name, one in value.items()}}
    return _describe(value)


def _check_made_again(kind: object) -> None:
    """See whether a class of modules is one of those that a checkpoint may have made.

    They load nothing and hold no weights: metrics that torchmetrics computes itself, losses and
    activations of torch.nn.

    Raises:
        ValueError: it is none.
    """
    is_module = isinstance(kind, type) and issubclass(kind, nn.Module)
    if not is_module or not _is_within(kind.__module__, MADE_AGAIN):
        raise ValueError(f"objects of {kind!r:.200} are not made again from a checkpoint")


def _made(kind: type[nn.Module], arguments: Mapping[str, object]) -> nn.Module:
    """Make a module of a library with arguments out of a file.

    Raises:
        ValueError: an argument is too large, or the module would have weights.
    """
    for name, value in arguments.items():
        if isinstance(value, (int, float)) and abs(value) > LARGEST_ARGUMENT:
            raise ValueError(f"{name}={value!r:.50} of {kind.__qualname__} is too large")
    if _is_within(kind.__module__, ("torch",)):
        # There weights of any size take no memory
        with torch.device("meta"):
            trial = kind(**arguments)
        if any(True for _ in (*trial.parameters(), *trial.buffers())):
            raise ValueError(f"{kind.__qualname__} has weights of its own")
    return kind(**arguments)


def _is_same_module(one: nn.Module, other: nn.Module) -> bool:
    """Tell whether a module made again is like the original: class, settings, state, parts."""
    if type(one) is not type(other) or one.training != other.training:
        return False
    mine, theirs = ({k: v for k, v in vars(m).items() if _is_setting(k, v)} for m in (one, other))
    children = [dict(m.named_children()) for m in (one, other)]
    states = [vars(m).get("_defaults", {}) for m in (one, other)]
    return (
        mine == theirs
        and getattr(one, "_update_count", 0) == getattr(other, "_update_count", 0)
        and states[0].keys() == states[1].keys()
        and all(_is_same_state(getattr(one, key), getattr(other, key)) for key in states[0])
        and list(children[0]) == list(children[1])
        and all(_is_same_module(children[0][key], children[1][key]) for key in children[0])
    )


def _is_setting(name: str, value: object) -> bool:
    plain = (bool, int, float, str, tuple, list, type(None))
    return isinstance(value, plain) and name not in ("_cache", "_computed", "_update_signature")


def _is_same_state(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())
    return isinstance(one, list) and one == other == []


def _path_of(value: type | Callable[..., object]) -> str:
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
    if isinstance(one, nn.Module) and isinstance(other, nn.Module):
        return _is_same_module(one, other)
    if type(one) in (list, tuple) and type(one) is type(other):
        assert isinstance(one, (list, tuple)) and isinstance(other, (list, tuple))
        return len(one) == len(other) and all(map(_is_same, one, other))
    return one is other or (type(one) is type(other) and bool(one == other))


# ---- from names to objects ----


def restore(description: object, cls: type) -> object:
    """Return the value that `describe` described.

    Args:
        description: out of a checkpoint; it may be anything.
        cls: the class of the module or datamodule that is to have it.

    Raises:
        ValueError: it is no description, or names what a checkpoint may not name.
    """
    check_size(description)
    return _rebuild(description, lambda path: find(path, cls))


def _rebuild(description: object, finder: Callable[[str], object]) -> object:
    if not isinstance(description, dict):
        raise ValueError(f"a {type(description).__name__} stands where a description is expected")
    if "plain" in description:
        return description["plain"]
    if "partial" in description:
        args = description.get("args", [])
        keywords = description.get("keywords", {})
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
    for key, container in (("list", list), ("tuple", tuple)):
        if key in description:
            items = description[key]
            if not isinstance(items, list):
                raise ValueError(f"it describes a {key} whose items are no list")
            return container(_rebuild(one, finder) for one in items)
    if "dict" in description:
        return _rebuilt_mapping(description["dict"], finder)
    if "module" in description:
        kind: Any = finder(_text(description["module"]))
        _check_made_again(kind)
        made = _made(kind, _rebuilt_mapping(description.get("arguments"), finder))
        _set_state(made, description.get("state", {}))
        return made
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


def _rebuilt_mapping(described: object, finder: Callable[[str], object]) -> dict[str, object]:
    if not isinstance(described, dict):
        raise ValueError("it describes a mapping that is none")
    return {_text(name): _rebuild(one, finder) for name, one in described.items()}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"a {type(value).__name__} stands where a name is expected")
    return value


def find(path: str, cls: type) -> object:
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


def find_public(path: str, cls: type) -> object:
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


def _walk(module: str, name: str, path: str) -> object:
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


def _find_to_write(path: str, cls: type) -> object:
    """Find as `find` does, and also any class or function of torch and of the packages of `cls`."""
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


def _variables(module: str) -> Mapping[str, object]:
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
    """Return the names of the packages of a module's class and of those it is derived from."""
    contract = next((one for one in cls.__mro__ if _is_within(one.__module__, ("raylit",))), cls)
    # Without mixins, whose packages have not thereby become ones that a checkpoint may name
    own = {one.__module__.partition(".")[0] for one in cls.__mro__ if issubclass(one, contract)}
    return own - {"raylit", "torch", "builtins"}


def defaults(cls: type) -> list[type | Callable[..., object]]:
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
def _functions() -> dict[str, object]:
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
