"""Callbacks that draw what a model does: what they draw, where it goes, and on two ranks."""

from __future__ import annotations

import csv
import math
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import raylit as pl
from raylit.callbacks import (
    AttributionLogger,
    CalibrationLogger,
    Callback,
    ConfusionMatrixLogger,
    ImageLogger,
    PredictionTable,
    TextLogger,
)
from raylit.callbacks.pictures.chosen import Chosen, fingerprints
from raylit.errors import ConfigError, DataError
from raylit.loggers import CSVLogger
from raylit.testing import CallbackConformance
from tests.ranks import run_on_two_ranks

NUM_SAMPLES = 22
CLASSES = ["bright", "dark", "grey"]


class Images(Dataset[dict[str, Any]]):
    """Images with a label, a number and a text each."""

    def __init__(self, num_samples: int = NUM_SAMPLES, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.rand(num_samples, 1, 6, 6, generator=generator)
        self.labels = (self.images.mean((1, 2, 3)) * 1000).long() % 3

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": self.images[index],
            "label": self.labels[index],
            "number": index,
            "text": f"image {index}",
        }


class Classifier(pl.LightningModule):
    """Logs `train_loss` and `val_loss`; draws random numbers in training."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(36, 3))

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch["image"]), batch["label"])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch["image"]), batch["label"]))

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        return {"logits": self(batch["image"]), "images": batch["image"]}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return self(batch["image"])

    def sample_images(self) -> Tensor:
        return torch.rand(3, 1, 6, 6)

    def sample_text(self) -> list[str]:
        return [f"eval: {not self.training}", f"drawn: {torch.rand(1).item():.4f}"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        return DataLoader(Images(12, seed=1), batch_size=4)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        return DataLoader(Images(), batch_size=4)

    test_dataloader = predict_dataloader = val_dataloader


def trainer(folder: Any, *callbacks: Callback, **arguments: Any) -> pl.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": CSVLogger(folder, name="", version="run"),
        "enable_checkpointing": None,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
        "log_every_n_steps": 1,
    }
    return pl.Trainer(callbacks=list(callbacks), **(settings | arguments))


def files(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def every_callback() -> list[Callback]:
    return [
        ConfusionMatrixLogger(CLASSES),
        CalibrationLogger(num_bins=4),
        PredictionTable(3, 2, 4, class_names=CLASSES),
        ImageLogger("image", num_images=5),
        ImageLogger("sample_images", name="made"),
        TextLogger("sample_text"),
        AttributionLogger("saliency", num_samples=3),
    ]


class Pictured(CallbackConformance):
    trainer_arguments: dict[str, Any] = {"logger": True}  # noqa: RUF012
    model = Classifier


class TestConfusionMatrixLogger(Pictured):
    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: ConfusionMatrixLogger(every_n_epochs=4)


class TestCalibrationLogger(Pictured):
    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: CalibrationLogger(dark=True, every_n_epochs=4)


class TestPredictionTable(Pictured):
    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: PredictionTable(2, 2, 2, every_n_epochs=4)


class TestImageLogger(Pictured):
    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: ImageLogger("sample_images", every_n_epochs=2)


class TestTextLogger(Pictured):
    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: TextLogger("sample_text")


class TestAttributionLogger(Pictured):
    @pytest.fixture
    def make(self) -> Callable[[], Callback]:
        return lambda: AttributionLogger(num_samples=2, num_steps=4, every_n_epochs=2)


def test_each_picture_becomes_a_file(tmp_path: Path) -> None:
    callbacks = every_callback()
    one = trainer(tmp_path, *callbacks)
    model = Classifier()
    one.fit(model)
    last = "step-00000006"
    expected = [
        f"images/image/{last}.png",
        f"images/made/{last}.png",
        f"plots/attributions/{last}.png",
        f"plots/calibration/{last}.png",
        f"plots/confusion/{last}.png",
        f"plots/predictions/{last}.png",
        f"sample_text/{last}.txt",
        f"tables/predictions/{last}.csv",
    ]
    found = files(tmp_path / "run")
    assert [name for name in found if last in name] == expected
    assert len([name for name in found if "step-00000003" in name]) == len(expected)
    for name in expected:
        assert (tmp_path / "run" / name).stat().st_size > 20
    text = (tmp_path / "run" / "sample_text" / f"{last}.txt").read_text()
    assert "eval: True" in text
    assert text == (tmp_path / "run" / "sample_text" / "step-00000003.txt").read_text()

    matrix = callbacks[0].matrix
    data = Images()
    with torch.no_grad():
        logits = model.eval()(data.images)
    expected_matrix = np.zeros((3, 3), int)
    for label, prediction in zip(data.labels, logits.argmax(1), strict=True):
        expected_matrix[label, prediction] += 1
    assert (matrix == expected_matrix).all()

    calibration = callbacks[1]
    shares = logits.softmax(1).amax(1)
    right = logits.argmax(1) == data.labels
    bins = (shares * 4).long().clamp(max=3)
    error = sum(
        abs(right[bins == index].double().mean() - shares[bins == index].double().mean()).item()
        * (bins == index).double().mean().item()
        for index in range(4)
        if (bins == index).any()
    )
    assert calibration.error == pytest.approx(error, abs=1e-6)
    assert one.callback_metrics["val_calibration_error"].item() == pytest.approx(error, abs=1e-6)

    losses = nn.functional.cross_entropy(logits, data.labels, reduction="none")
    rows = callbacks[2].rows
    assert rows["samples"] == ["worst"] * 3 + ["best"] * 2 + ["random"] * 4
    worst = losses.argsort(descending=True)[:3]
    assert rows["number"][:3] == worst.tolist()
    assert rows["text"][:3] == [f"image {index}" for index in worst]
    assert rows["number"][3:5] == losses.argsort()[:2].tolist()
    assert rows["label"][:3] == [CLASSES[data.labels[index]] for index in worst]
    assert rows["prediction"][:3] == [CLASSES[logits[index].argmax()] for index in worst]
    assert rows["probability"][:3] == pytest.approx(shares[worst].tolist())
    with open(tmp_path / "run" / f"tables/predictions/{last}.csv") as file:
        assert next(csv.reader(file)) == list(rows)

    explanation = callbacks[6].explanation
    assert explanation is not None and explanation.attributions["image"].shape == (3, 1, 6, 6)


def test_test_has_names_of_its_own_and_reads_what_the_step_returns(tmp_path: Path) -> None:
    class NoForward(Classifier):
        def forward(self, image: Tensor) -> Tensor:
            assert not self.is_closed, "the step's own logits are enough"
            return self.net(image)

        def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
            self.is_closed = False
            found = super().test_step(batch, batch_idx)
            self.is_closed = True
            return found

    callbacks = [ConfusionMatrixLogger(), ImageLogger("images")]
    trainer(tmp_path, *callbacks).test(NoForward(), verbose=False)
    names = [name for name in files(tmp_path / "run") if name.endswith("png")]
    assert names == [
        "images/test_images/step-00000000.png",
        "plots/test_confusion/step-00000000.png",
    ]


def test_validation_outside_of_fit_is_drawn_without_gradients(tmp_path: Path) -> None:
    one = trainer(tmp_path, AttributionLogger(num_samples=2), inference_mode=True)
    one.validate(Classifier(), verbose=False)
    assert "plots/attributions/step-00000000.png" in files(tmp_path / "run")


def test_epochs_without_validation_are_drawn_and_only_those_that_are_due(tmp_path: Path) -> None:
    callbacks = [TextLogger("sample_text", every_n_epochs=2), ImageLogger("sample_images")]
    one = trainer(tmp_path, *callbacks, limit_val_batches=0, max_epochs=4)
    model = Classifier()
    one.fit(model)
    names = files(tmp_path / "run")
    assert [name for name in names if name.startswith("sample_text")] == [
        "sample_text/step-00000006.txt",
        "sample_text/step-00000012.txt",
    ]
    assert len([name for name in names if name.startswith("images")]) == 4
    assert model.training


def on_ranks(folder: str) -> dict[str, Any]:
    """Fit on the ranks there are; return what each callback holds, and the weights."""
    os.makedirs(folder, exist_ok=True)
    callbacks = every_callback()
    trained = []
    for logger, looked in (
        (CSVLogger(folder, name="", version="fit"), [AttributionLogger(num_samples=2)]),
        (False, []),
    ):
        torch.manual_seed(0)
        model = Classifier()
        trainer(folder, *looked, max_epochs=1, logger=logger).fit(model)
        trained.append({name: value.clone() for name, value in model.state_dict().items()})
    weights = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    weights["net.2.weight"] += torch.linspace(-1, 1, 108).reshape(3, 36)
    model.load_state_dict(weights)  # the same ones on any number of ranks
    trainer(folder, *callbacks).validate(model, verbose=False)
    confusion, calibration, table, *_, attributions = callbacks
    found = {
        "matrix": confusion.matrix.tolist(),
        "counts": calibration.counts.tolist(),
        "error": calibration.error,
        "rows": table.rows,
        "explanation": attributions.explanation,
        "same": all(torch.equal(trained[0][name], trained[1][name]) for name in weights),
    }
    return found


def test_two_ranks_draw_what_one_process_draws(tmp_path: Path) -> None:
    alone = pickle.loads(pickle.dumps(on_ranks(str(tmp_path / "alone"))))
    zero, one = run_on_two_ranks(on_ranks, tmp_path)
    assert zero["matrix"] == one["matrix"] == alone["matrix"]
    assert zero["counts"] == one["counts"] == alone["counts"]
    assert zero["error"] == one["error"] == pytest.approx(alone["error"], abs=1e-7)
    for column, values in alone["rows"].items():
        if column in ("loss", "probability"):
            assert zero["rows"][column] == pytest.approx(values, abs=1e-6)
        else:
            assert zero["rows"][column] == one["rows"][column] == values
    assert one["explanation"] is None
    np.testing.assert_array_equal(
        zero["explanation"].inputs["image"], alone["explanation"].inputs["image"]
    )
    np.testing.assert_allclose(
        zero["explanation"].attributions["image"],
        alone["explanation"].attributions["image"],
        atol=1e-6,
    )
    assert zero["same"] and one["same"] and alone["same"], "training is not changed"
    names = [name for name in files(tmp_path / "run") if "step-00000000" in name]
    assert names == [name for name in files(tmp_path / "alone" / "run") if "step-00000000" in name]


@dataclass
class Pair:
    x: Tensor
    y: Tensor


class Regression(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1)

    def validation_step(self, batch: Pair, batch_idx: int) -> None: ...

    def val_dataloader(self) -> DataLoader[Any]:
        data = TensorDataset(torch.randn(8, 3), torch.randn(8))
        return DataLoader(
            data,
            batch_size=4,
            collate_fn=lambda samples: Pair(*map(torch.stack, zip(*samples, strict=True))),
        )


def test_numbers_are_judged_by_their_squared_error(tmp_path: Path) -> None:
    table = PredictionTable(1, 1, 0)
    trainer(tmp_path, table).validate(Regression(), verbose=False)
    assert table.rows["samples"] == ["worst", "best"]
    assert table.rows["loss"][0] > table.rows["loss"][1]
    assert "probability" not in table.rows


def test_one_score_is_that_of_class_1() -> None:
    from raylit.callbacks.pictures.picture import Predicted, aligned, classified
    from raylit.callbacks.pictures.prediction_table import losses_of

    logits = torch.tensor([[2.0], [-1.0]])
    expected = [math.log1p(math.exp(-2)), math.log1p(math.exp(1))]
    for scores, from_logits in ((logits, True), (logits.sigmoid(), False)):
        predicted = aligned(Predicted(scores, torch.tensor([1, 1])))
        found = classified(predicted, from_logits)
        assert (found.classes.tolist(), found.labels.tolist(), found.number) == ([1, 0], [1, 1], 2)
        losses = losses_of(predicted, from_logits, ignore_index=-100)
        assert losses["classes"].tolist() == pytest.approx(expected)


class Given(pl.LightningModule):
    """Predicts what the data says."""

    def __init__(self) -> None:
        super().__init__()
        self.parameter = torch.nn.Parameter(torch.zeros(1))

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        return scores

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...


def shown(tmp_path: Path, callback: Any, scores: torch.Tensor, labels: torch.Tensor) -> Any:
    data = DataLoader(TensorDataset(scores, labels), batch_size=8)
    trainer(tmp_path, callback).validate(Given(), data, verbose=False)
    return callback


SHARES = torch.rand(100, generator=torch.Generator().manual_seed(0))
YES_OR_NO = torch.randint(0, 2, (100,), generator=torch.Generator().manual_seed(1))


def test_probabilities_of_class_1(tmp_path: Path) -> None:
    truth = [
        [int(((label == YES_OR_NO) & ((SHARES > 0.5) == said)).sum()) for said in (False, True)]
        for label in (0, 1)
    ]
    for scores in (SHARES, SHARES[:, None]):
        for labels in (YES_OR_NO, YES_OR_NO[:, None]):
            matrix = shown(tmp_path, ConfusionMatrixLogger(from_logits=False), scores, labels)
            assert matrix.matrix.tolist() == truth
            calibration = shown(tmp_path, CalibrationLogger(from_logits=False), scores, labels)
            assert calibration.error == pytest.approx(
                shown(tmp_path, CalibrationLogger(), SHARES.logit(), YES_OR_NO).error, abs=1e-6
            )
    with pytest.warns(UserWarning, match="all of them are from 0 to 1"):
        shown(tmp_path, ConfusionMatrixLogger(), SHARES, YES_OR_NO)
    with pytest.raises(ConfigError, match="they are no probabilities"):
        shown(tmp_path, CalibrationLogger(from_logits=False), 3 * SHARES, YES_OR_NO)


def test_what_is_no_number_is_left_out_and_told(tmp_path: Path) -> None:
    scores = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 3
    broken = scores.clone()
    broken[3, 1] = torch.nan
    rest = [row for row in range(20) if row != 3]
    for callback in (CalibrationLogger, ConfusionMatrixLogger):
        with pytest.warns(UserWarning, match="leaves out 1 predictions that are NaN"):
            found = shown(tmp_path, callback(), broken, labels)
        expected = shown(tmp_path, callback(), scores[rest], labels[rest])
        name = "error" if callback is CalibrationLogger else "matrix"
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    table = shown(tmp_path, PredictionTable(1, 0, 0), broken, labels)
    assert math.isnan(table.rows["loss"][0])


def test_labels_with_a_dimension_of_one(tmp_path: Path) -> None:
    scores = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 3
    for callback, name in ((ConfusionMatrixLogger, "matrix"), (PredictionTable, "rows")):
        found = [shown(tmp_path, callback(), scores, one) for one in (labels[:, None], labels)]
        assert str(getattr(found[0], name)) == str(getattr(found[1], name))
    with pytest.raises(ConfigError, match="do not belong together"):
        shown(tmp_path, ConfusionMatrixLogger(), scores, torch.zeros(20, 5, dtype=torch.long))


def test_extreme_logits_and_sequences_of_length_1(tmp_path: Path) -> None:
    table = shown(
        tmp_path, PredictionTable(2, 0, 0), torch.tensor([-1e4, 1e4]), torch.tensor([0, 1])
    )
    assert table.rows["probability"] == [1.0, 1.0]
    scores = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(20) % 3
    flat = shown(tmp_path, ConfusionMatrixLogger(), scores, labels)
    sequences = shown(tmp_path, ConfusionMatrixLogger(), scores[..., None], labels[:, None])
    assert np.array_equal(flat.matrix, sequences.matrix)


def test_images_of_several_sizes_are_drawn_in_one_picture() -> None:
    logger = ImageLogger("image")
    pictures = [np.ones((1, 3, 5), np.float32), np.ones((3, 4, 2), np.float32)]
    grid = logger._grid(pl.LightningModule(), pictures)
    factor = 256 // 11
    assert grid.shape == (4 * factor, 11 * factor, 3)
    assert grid.sum() == (3 * 5 + 4 * 2) * 3 * factor**2


def test_whole_numbers_that_are_no_classes(tmp_path: Path) -> None:
    """Also where the first batches hold 0 and 1 only."""
    numbers = torch.arange(20) // 8
    scores = numbers.float()
    scores[17] += 45
    table = shown(tmp_path, PredictionTable(1, 1, 0), scores, numbers)
    assert table.rows["loss"] == [2025.0, 0.0]
    assert table.rows["prediction"][0] == 47.0
    assert "probability" not in table.rows


def test_labels_to_ignore_are_in_no_table(tmp_path: Path) -> None:
    labels = torch.tensor([0, -100, 1, 2])
    table = shown(tmp_path, PredictionTable(4, 4, 4), torch.randn(4, 3), labels)
    assert sorted(table.rows["label"]) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    numbers = torch.tensor([1.0, -100.0])
    table = shown(tmp_path, PredictionTable(2, 0, 0), torch.zeros(2), numbers)
    assert table.rows["label"] == [-100.0, 1.0]


class Alone:
    """A world of one rank."""

    def all_gather_object(self, value: Any) -> list[Any]:
        return [value]


def test_the_choice_depends_on_neither_batches_nor_their_shapes() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randn(length, generator=generator) for length in (3, 5, 3, 5, 3, 3, 5, 5)]

    def chosen(batches: list[list[int]]) -> list[int]:
        picks = Chosen(3)
        for batch in batches:
            values = {"x": torch.stack([samples[index] for index in batch])}
            content = fingerprints(values, len(batch))
            picks.offer(content, content, values, {"name": [str(index) for index in batch]})
        return [int(one.texts["name"]) for one in picks.gathered(Alone())]  # type: ignore[arg-type]

    first = chosen([[0, 2], [1, 3], [4, 5], [6, 7]])
    assert chosen([[7, 6, 3], [5], [4, 0, 2], [1]]) == first
    assert len(set(first)) == 3


def test_fingerprints_are_spread_and_of_all_types() -> None:
    values = {
        "bits": torch.arange(512) % 2 == 0,
        "words": torch.arange(512, dtype=torch.int16)[:, None],
        "half": torch.zeros(512, 4, dtype=torch.bfloat16),
        "waves": torch.zeros(512, 2, dtype=torch.complex64),
    }
    found = fingerprints(values, 512)
    assert len(found.unique()) == 512
    assert 150 < (found > 0).sum() < 362, "as if drawn at random"
    assert not torch.equal(found, fingerprints(values, 512, seed=1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConfusionMatrixLogger(every_n_epochs=0), "every_n_epochs=0"),
        (lambda: ConfusionMatrixLogger(name=""), "no name"),
        (lambda: ConfusionMatrixLogger(["a"], num_classes=2), "1 class_names"),
        (lambda: CalibrationLogger(num_bins=1), "2 or more"),
        (lambda: PredictionTable(0, 0, 0), "one must be positive"),
        (lambda: PredictionTable(-1), "none may be negative"),
        (lambda: ImageLogger("x", num_images=0), "num_images=0"),
        (lambda: ImageLogger("x", value_range=(1, 0)), "must be above"),
        (lambda: AttributionLogger("saliancy"), "Did you mean 'saliency'"),
        (lambda: AttributionLogger(target="lable"), "AttributionLogger\\(target='lable'"),
        (lambda: AttributionLogger(num_samples=0), "num_samples=0"),
    ],
)
def test_bad_arguments_are_told_at_once(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


class Unlabelled(Classifier):
    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Images().images, batch_size=4)

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, int]:
        return {"logits": 3}

    def sample_images(self) -> Tensor:
        return torch.zeros(2, 5, 6, 6)

    def sample_text(self) -> Any:
        return 3


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (ConfusionMatrixLogger(), "is a int, not a tensor"),
        (ConfusionMatrixLogger(prediction="shares"), "a dict with logits"),
        (ImageLogger("picture"), "is neither a method of it"),
        (ImageLogger("sample_images"), r"images of shape \(5, 6, 6\)"),
        (TextLogger("sample_text"), "gives a int"),
        (TextLogger("sample_words"), "has no such method"),
    ],
)
def test_what_cannot_be_drawn_names_what_to_return(
    tmp_path: Path, callback: Callback, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, callback).validate(Unlabelled(), verbose=False)


def test_labels_that_are_missing_or_wrong_are_told(tmp_path: Path) -> None:
    class NoLabels(Unlabelled):
        def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    class Returns(Classifier):
        def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
            return {"preds": batch["label"], "target": batch["label"] + 1}

    with pytest.raises(ConfigError, match="has labels called label, labels, target"):
        trainer(tmp_path, CalibrationLogger()).validate(NoLabels(), verbose=False)
    with pytest.raises(ConfigError, match="needs scores"):
        trainer(tmp_path, CalibrationLogger()).validate(Returns(), verbose=False)
    with pytest.raises(ConfigError, match="how many classes"):
        trainer(tmp_path, ConfusionMatrixLogger()).validate(Returns(), verbose=False)
    with pytest.raises(DataError, match="labels and 0 predictions are not from 0 to 2"):
        trainer(tmp_path, ConfusionMatrixLogger(CLASSES)).validate(Returns(), verbose=False)
    counted = ConfusionMatrixLogger(CLASSES, ignore_index=3)
    trainer(tmp_path, counted).validate(Returns(), verbose=False)
    assert np.diag(counted.matrix).sum() == 0


def test_without_a_logger_there_is_nothing_to_draw_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ConfusionMatrixLogger has no logger"):
        trainer(tmp_path, ConfusionMatrixLogger(), logger=False).fit(Classifier())
