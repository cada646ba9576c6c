from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from raylit import LightningDataModule, LightningModule
from raylit.core.hparams import AttributeDict, accepted_arguments, construct, constructed_with
from raylit.errors import ConfigError


class Net(LightningModule):
    def __init__(self, width: int = 4, lr: float = 0.1, **more: Any) -> None:
        super().__init__()
        self.save_hyperparameters()


class Fixed(LightningModule):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.save_hyperparameters()


def test_an_attribute_dict_is_both() -> None:
    values = AttributeDict(a=1)
    values.b = 2
    assert (values.a, values["b"], dict(values)) == (1, 2, {"a": 1, "b": 2})
    del values.a
    with pytest.raises(AttributeError, match="no hyperparameter 'a'; there are: b"):
        _ = values.a
    with pytest.raises(AttributeError):
        del values.a
    assert copy.deepcopy(values) == pickle.loads(pickle.dumps(values)) == values
    assert repr(values) == '"b": 2'


def test_what_was_saved_can_be_changed_but_not_what_it_was_at_first() -> None:
    net = Net(items=[1])
    net.hparams.more_or_less = 1
    net.hparams["items"].append(2)
    net.hparams_initial["items"].append(3)
    assert net.hparams_initial == {"width": 4, "lr": 0.1, "items": [1]}
    assert net.hparams["items"] == [1, 2]


def test_an_argument_that_there_is_not() -> None:
    class Wrong(LightningModule):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.save_hyperparameters("widht")

    with pytest.raises(ConfigError, match=r"Wrong\.__init__ has no argument 'widht'"):
        Wrong(1)


def test_what_cannot_be_kept() -> None:
    class Wrong(LightningModule):
        def __init__(self, value: Any) -> None:
            super().__init__()
            self.save_hyperparameters(value)

    with pytest.raises(ConfigError, match="the int 3"):
        Wrong(3)
    with pytest.raises(ConfigError, match="cannot keep a set"):
        Wrong({1})


def test_arguments_by_name() -> None:
    assert accepted_arguments(Fixed, {"width": 1, "other": 2}) == {"width": 1}
    assert accepted_arguments(Net, {"width": 1, "other": 2}) == {"width": 1, "other": 2}


def test_the_command_line_knows_better() -> None:
    with constructed_with(Fixed, {"width": {"class_path": "a.B"}}):
        net, other = Fixed(3), Net(4)
    assert net.hparams == {"width": {"class_path": "a.B"}}
    assert other.hparams == {"width": 4, "lr": 0.1}, "it spoke of another class"
    assert Fixed(3).hparams == {"width": 3}


def test_an_object_from_a_checkpoint() -> None:
    checkpoint = {"hyper_parameters": {"width": 7, "gone": 1}, "hparams_name": "kwargs"}
    assert construct(Fixed, checkpoint, None, {}).hparams == {"width": 7}
    assert construct(Fixed, checkpoint, None, {"width": 8}).hparams == {"width": 8}


def test_loading_into_an_object_is_refused() -> None:
    for made in (Net(), LightningDataModule()):
        with pytest.raises(
            TypeError,
            match=rf"new = {type(made).__name__}\.load_from_checkpoint\(\.\.\.\) on the class",
        ):
            made.load_from_checkpoint("any.ckpt")
