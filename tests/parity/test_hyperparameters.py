"""save_hyperparameters in all its forms, and modules and datamodules made from checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parity.harness import files, loader, model_class, parity, trainer

KINDS = pytest.mark.parametrize("kind", ["module", "datamodule"])


def base_of(pl: Any, kind: str) -> Any:
    return model_class(pl) if kind == "module" else pl.LightningDataModule


def kept(owner: Any) -> dict[str, Any]:
    return {
        "hparams": dict(owner.hparams),
        "initial": dict(owner.hparams_initial),
        "name": getattr(owner, "_hparams_name", None),
    }


FORMS: dict[str, Any] = {
    "all": [((), {})],
    "names": [(("a", "c"), {})],
    "one name": [(("b",), {})],
    "without one": [((), {"ignore": "a"})],
    "without two": [((), {"ignore": ["a", "more"]})],
    "not for loggers": [((), {"logger": False})],
    "a dict": [(({"x": 1, "y": [1, 2]},), {})],
    "a namespace": [((argparse.Namespace(x=1),), {})],
    "an empty dict": [(({},), {})],
    "one after the other": [(("a",), {}), (("b",), {})],
    "all and a dict": [((), {}), (({"z": 1},), {})],
}


@parity
@KINDS
@pytest.mark.parametrize("form", FORMS)
def test_forms(pl: Any, tmp_path: Path, kind: str, form: str) -> Any:
    class Owner(base_of(pl, kind)):  # type: ignore[misc]
        def __init__(self, a: int, b: str = "b", *args: Any, c: Any = None, **kwargs: Any) -> None:
            super().__init__()
            for positional, named in FORMS[form]:
                self.save_hyperparameters(*positional, **named)

    found = [kept(Owner(1)), kept(Owner(a=2, b="x", c=[1], more=3))]
    changed = Owner(1)
    changed.hparams.a = 5
    changed.hparams["new"] = 6
    return {"found": found, "changed": kept(changed), "log": changed._log_hyperparams}


@parity
@KINDS
def test_a_container_given_as_argument(pl: Any, tmp_path: Path, kind: str) -> Any:
    class Owner(base_of(pl, kind)):  # type: ignore[misc]
        def __init__(self, config: Any, other: int = 1) -> None:
            super().__init__()
            self.save_hyperparameters(config)

    return {"dict": kept(Owner({"x": 1})), "namespace": kept(Owner(argparse.Namespace(x=1)))}


@parity
@KINDS
@pytest.mark.parametrize("in_base", [True, False])
@pytest.mark.parametrize("in_child", [True, False])
@pytest.mark.parametrize("ignore", [None, "b", "lr"])
def test_inheritance(
    pl: Any, tmp_path: Path, kind: str, in_base: bool, in_child: bool, ignore: Any
) -> Any:
    class Base(base_of(pl, kind)):  # type: ignore[misc]
        def __init__(self, lr: float = 0.1, b: int = 2) -> None:
            super().__init__()
            if in_base:
                self.save_hyperparameters(ignore="b" if ignore == "lr" else None)

    class Child(Base):
        def __init__(self, c: int, lr: float = 0.5, **kwargs: Any) -> None:
            super().__init__(lr=lr * 2, **kwargs)
            if in_child:
                self.save_hyperparameters(ignore=ignore)

    return {"found": [kept(Child(1)), kept(Child(1, lr=3, b=4))]}


@parity
def test_saved_from_a_function_that_init_calls(pl: Any, tmp_path: Path) -> Any:
    class Owner(model_class(pl)):  # type: ignore[misc]
        def __init__(self, a: int, b: int = 2) -> None:
            local = a * 10  # noqa: F841  (no argument: it is not kept)
            super().__init__()
            a = a + 1
            self.save_hyperparameters()

    return kept(Owner(1))


def parametrized(pl: Any) -> Any:
    class Sized(model_class(pl)):  # type: ignore[misc]
        def __init__(
            self, width: int, name: str = "n", items: tuple[int, ...] = (1, 2), extra: Any = None
        ) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.sized = torch.nn.Linear(width, 1)

    return Sized


def saved(pl: Any, root: Path, model: Any, datamodule: Any = None, **more: Any) -> Path:
    one = trainer(pl, root, max_epochs=1, **more)
    one.fit(
        model,
        **(
            {"datamodule": datamodule}
            if datamodule is not None
            else {"train_dataloaders": loader(1)}
        ),
    )
    one.save_checkpoint(root / "one.ckpt")
    return root / "one.ckpt"


@parity
@pytest.mark.parametrize(
    "overrides", [{}, {"name": "other"}, {"items": [3], "extra": {"a": 1}}, {"unknown": 1}]
)
def test_load_from_checkpoint(pl: Any, tmp_path: Path, overrides: dict[str, Any]) -> Any:
    path = saved(pl, tmp_path, parametrized(pl)(5, extra=[1, {"k": None}]))
    made = parametrized(pl).load_from_checkpoint(path, **overrides)
    made_from_string = parametrized(pl).load_from_checkpoint(
        str(path), map_location="cpu", **overrides
    )
    return {
        **kept(made),
        "weights": made.state_dict(),
        "training": made.training,
        "again": kept(made_from_string),
    }


@parity
def test_load_from_checkpoint_with_other_weights(pl: Any, tmp_path: Path) -> Any:
    path = saved(pl, tmp_path, model_class(pl)())

    class Larger(model_class(pl)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.more = torch.nn.Linear(1, 1)

    with pytest.raises(RuntimeError, match=r"more\.weight"):
        Larger.load_from_checkpoint(path)
    made = Larger.load_from_checkpoint(path, strict=False)

    class Lenient(Larger):
        def __init__(self) -> None:
            super().__init__()
            self.strict_loading = False

    return {
        "layer": made.layer.weight,
        "lenient": Lenient.load_from_checkpoint(path).layer.weight,
        "strict": Lenient().strict_loading,
    }


@parity
def test_load_from_checkpoint_without_stored_hyperparameters(pl: Any, tmp_path: Path) -> Any:
    class Silent(model_class(pl)):  # type: ignore[misc]
        def __init__(self, width: int, other: int = 1) -> None:
            super().__init__()
            self.sized = torch.nn.Linear(width, 1)

    path = saved(pl, tmp_path, Silent(3))
    with pytest.raises(TypeError):
        Silent.load_from_checkpoint(path)
    (tmp_path / "hparams.yaml").write_text("width: 3\nother: 2\n")
    made = [
        Silent.load_from_checkpoint(path, width=3),
        Silent.load_from_checkpoint(path, hparams_file=str(tmp_path / "hparams.yaml")),
    ]
    return {"made": [one.state_dict() for one in made]}


@parity
def test_the_file_of_a_logger_gives_tuples_again(pl: Any, tmp_path: Path) -> Any:
    Sized = parametrized(pl)
    logger = pl.loggers.CSVLogger(tmp_path, name="", version="")
    path = saved(pl, tmp_path, Sized(2, items=(3, (4, "a"))), logger=logger)
    file = tmp_path / "hparams.yaml"
    assert "!!python/tuple" in file.read_text()
    return kept(Sized.load_from_checkpoint(path, hparams_file=str(file)))


@parity
def test_load_from_checkpoint_of_a_container(pl: Any, tmp_path: Path) -> Any:
    class Configured(model_class(pl)):  # type: ignore[misc]
        def __init__(self, config: Any, other: int = 3) -> None:
            super().__init__()
            self.save_hyperparameters(config)
            self.sized = torch.nn.Linear(config["width"], 1)

    path = saved(pl, tmp_path, Configured({"width": 2, "lr": 0.1}))
    made = Configured.load_from_checkpoint(path)
    other = Configured.load_from_checkpoint(path, lr=0.7, other=4)
    whole = Configured.load_from_checkpoint(path, config={"width": 2, "lr": 0.3})
    hparams = [kept(one) for one in (made, other, whole)]
    return {"hparams": hparams, "weights": made.state_dict()}


@parity
def test_a_datamodule_in_a_checkpoint(pl: Any, tmp_path: Path) -> Any:
    class Data(pl.LightningDataModule):  # type: ignore[misc]
        def __init__(self, size: int, folder: str = "here") -> None:
            super().__init__()
            self.save_hyperparameters()
            self.position = 0

        def train_dataloader(self) -> Any:
            return loader(self.hparams.size)

        def state_dict(self) -> dict[str, Any]:
            return {"position": 7}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.position = state["position"]

    path = saved(pl, tmp_path, parametrized(pl)(2), Data(3))
    made = Data.load_from_checkpoint(path, folder="there")
    data = Data(3)
    trainer(pl, tmp_path, max_epochs=2).fit(parametrized(pl)(2), datamodule=data, ckpt_path=path)
    stored = {
        key: value
        for key, value in torch.load(path, weights_only=True).items()
        if "hyper" in key or "hparams" in key or "Data" in key
    }
    return {**kept(made), "position": [made.position, data.position], "stored": stored}


@parity
@pytest.mark.parametrize("logger", [True, False])
def test_what_the_loggers_get(pl: Any, tmp_path: Path, logger: bool) -> Any:
    class Net(model_class(pl)):  # type: ignore[misc]
        def __init__(self, lr: float, path: Any, nested: Any) -> None:
            super().__init__()
            self.save_hyperparameters(logger=logger)

    class Data(pl.LightningDataModule):  # type: ignore[misc]
        def __init__(self, lr: float, batch_size: int = 2) -> None:
            super().__init__()
            self.save_hyperparameters()

        def train_dataloader(self) -> Any:
            return loader(2)

    one = trainer(pl, tmp_path, logger=True, max_epochs=1)
    one.fit(Net(0.1, "some/path", {"a": [1, 2], "b": None}), datamodule=Data(0.1))
    found = {
        name: sorted((tmp_path / name).read_text().splitlines())
        for name in files(tmp_path, "**/hparams.yaml")
    }
    return {"found": found, "files": files(tmp_path, "**/*.*")}
