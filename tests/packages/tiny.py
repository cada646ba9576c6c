"""Tiny models of packages that train through Lightning: train, save, load, predict.

`python tiny.py PACKAGE lightning|raylit [WORKERS]` prints the figures as one line of JSON. It runs
in an environment of its own that has the package, Lightning and raylit.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

PACKAGE, BACKEND, WORKERS = sys.argv[1], sys.argv[2], int(sys.argv[3]) if sys.argv[3:] else 0
if BACKEND == "raylit":
    import raylit.as_lightning  # noqa: F401  (before anything imports Lightning)

import torch  # noqa: E402

warnings.simplefilter("ignore")
SPREAD: dict[str, Any] = {"num_workers": WORKERS} if WORKERS else {}  # arguments of the Trainer
# Of a package whose data are generators, which can be forked, but not sent to another process
FORKED: dict[str, Any] = {"devices": WORKERS, "strategy": "ddp_fork"} if WORKERS else {}
# Of a model that does not use all its parameters in each step
UNUSED: dict[str, Any] = {"strategy": "ddp_find_unused_parameters_true"} if WORKERS else {}


def series() -> Any:
    time = np.arange(120, dtype=np.float64)
    return np.sin(time / 6) + time / 100


def pytorch_forecasting() -> Any:
    import lightning.pytorch as pl
    import pandas as pd
    from pytorch_forecasting import TemporalFusionTransformer, TimeSeriesDataSet
    from pytorch_forecasting.metrics import QuantileLoss

    pl.seed_everything(1)
    table = pd.DataFrame({"value": series(), "time": np.arange(120), "group": "a"})
    train = TimeSeriesDataSet(
        table[lambda one: one.time < 100],
        time_idx="time",
        target="value",
        group_ids=["group"],
        max_encoder_length=12,
        max_prediction_length=4,
        time_varying_unknown_reals=["value"],
    )
    valid = TimeSeriesDataSet.from_dataset(train, table, min_prediction_idx=100)
    loaders = [
        train.to_dataloader(train=True, batch_size=16, num_workers=0),
        valid.to_dataloader(train=False, batch_size=16, num_workers=0),
    ]
    model = TemporalFusionTransformer.from_dataset(
        train, hidden_size=4, attention_head_size=1, loss=QuantileLoss(), dropout=0.0
    )
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        limit_train_batches=3,
        gradient_clip_val=0.1,
        **SPREAD,
        **UNUSED,
    )
    trainer.fit(model, *loaders)
    path = trainer.checkpoint_callback.best_model_path
    again = TemporalFusionTransformer.load_from_checkpoint(path, weights_only=False)
    alone = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    predicted = again.predict(loaders[1], trainer_kwargs=alone)
    return {
        "val_loss": float(trainer.callback_metrics["val_loss"]),
        "predicted": predicted.flatten()[:6].tolist(),
    }


def chemprop() -> Any:
    import lightning.pytorch as pl
    from chemprop import data, models, nn

    pl.seed_everything(1)
    smiles = ["CCO", "CCN", "CCC", "c1ccccc1", "CC(=O)O", "CCCl", "CCBr", "CNC"]
    points = [
        data.MoleculeDatapoint.from_smi(one, [float(index)]) for index, one in enumerate(smiles)
    ]
    dataset = data.MoleculeDataset(points)
    loader = data.build_dataloader(dataset, batch_size=4, shuffle=False, num_workers=0)
    model = models.MPNN(
        nn.BondMessagePassing(d_h=16),
        nn.MeanAggregation(),
        nn.RegressionFFN(input_dim=16, hidden_dim=16),
        metrics=[nn.metrics.RMSE(), nn.metrics.MAE()],
    )
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", **SPREAD)
    trainer.fit(model, loader, loader)
    path = trainer.checkpoint_callback.best_model_path
    again = models.MPNN.load_from_checkpoint(path)
    file = models.MPNN.load_from_file(path)
    alone = pl.Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    return {
        "val_loss": float(trainer.callback_metrics["val_loss"]),
        "predicted": torch.cat(alone.predict(again, loader)).flatten().tolist(),
        "from_file": torch.cat(alone.predict(file, loader)).flatten().tolist(),
    }


def gluonts() -> Any:
    import lightning.pytorch as pl
    from gluonts.dataset.common import ListDataset
    from gluonts.model.predictor import Predictor
    from gluonts.torch import SimpleFeedForwardEstimator

    pl.seed_everything(1)
    data = ListDataset([{"start": "2024-01-01", "target": series()}] * 4, freq="D")
    estimator = SimpleFeedForwardEstimator(
        prediction_length=4,
        context_length=12,
        hidden_dimensions=[8],
        batch_size=8,
        num_batches_per_epoch=4,
        trainer_kwargs={"max_epochs": 2, "accelerator": "cpu", **FORKED},
    )
    np.random.seed(1)
    torch.manual_seed(1)
    predictor = estimator.train(data, validation_data=data)
    import pathlib
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        predictor.serialize(pathlib.Path(folder))
        again = Predictor.deserialize(pathlib.Path(folder))
    torch.manual_seed(2)
    forecast = next(iter(again.predict(data)))
    return {"predicted": [float(value) for value in forecast.mean[:4]]}


def scvi() -> Any:
    import tempfile

    import anndata
    import scvi as package

    package.settings.seed = 1
    counts = np.random.default_rng(1).poisson(2.0, (64, 20)).astype(np.float32)
    table = anndata.AnnData(counts)
    package.model.SCVI.setup_anndata(table)
    model = package.model.SCVI(table, n_hidden=8, n_latent=3)
    model.train(
        max_epochs=2,
        accelerator="cpu",
        batch_size=16,
        check_val_every_n_epoch=1,
        early_stopping=True,
        enable_checkpointing=True,
        **SPREAD,
        **UNUSED,
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder, overwrite=True)
        again = package.model.SCVI.load(folder, table)
    torch.manual_seed(2)
    latent = again.get_latent_representation(give_mean=True)
    return {
        "elbo": [float(value) for value in model.history["elbo_validation"].values.flatten()],
        "latent": [float(value) for value in latent[:2].flatten()],
    }


def darts() -> Any:
    import tempfile

    from darts import TimeSeries
    from darts.models import NBEATSModel

    values = TimeSeries.from_values(series().astype(np.float32))
    with tempfile.TemporaryDirectory() as folder:
        model = NBEATSModel(
            input_chunk_length=12,
            output_chunk_length=4,
            n_epochs=2,
            num_stacks=1,
            num_blocks=1,
            num_layers=1,
            layer_widths=8,
            random_state=1,
            work_dir=folder,
            model_name="tiny",
            save_checkpoints=True,
            force_reset=True,
            pl_trainer_kwargs={"accelerator": "cpu", **SPREAD},
        )
        model.fit(values[:100], val_series=values[80:])
        predicted = model.predict(4)
        best = NBEATSModel.load_from_checkpoint("tiny", work_dir=folder, best=True)
        model.save(f"{folder}/saved.pt")
        again = NBEATSModel.load(f"{folder}/saved.pt")
        return {
            "predicted": predicted.values().flatten().tolist(),
            "best": best.predict(4, series=values[:100]).values().flatten().tolist(),
            "again": again.predict(4, series=values[:100]).values().flatten().tolist(),
        }


def neuralforecast() -> Any:
    import tempfile

    import pandas as pd
    from neuralforecast import NeuralForecast
    from neuralforecast.models import NHITS

    dates = pd.date_range("2024-01-01", periods=120, freq="D")
    names = ["a", "b", "c", "d"]  # so many that each rank validates some
    table = pd.concat(pd.DataFrame({"unique_id": one, "ds": dates, "y": series()}) for one in names)
    model = NHITS(
        h=4,
        input_size=12,
        max_steps=6,
        val_check_steps=3,
        batch_size=2,
        windows_batch_size=16,
        mlp_units=3 * [[8, 8]],
        random_seed=1,
        accelerator="cpu",
        early_stop_patience_steps=2,
        **SPREAD,
    )
    forecast = NeuralForecast(models=[model], freq="D")
    forecast.fit(table, val_size=8)
    predicted = forecast.predict()["NHITS"].tolist()
    with tempfile.TemporaryDirectory() as folder:
        forecast.save(folder, overwrite=True)
        again = NeuralForecast.load(folder)
    return {"predicted": predicted, "again": again.predict(table)["NHITS"].tolist()}


SCENARIOS: dict[str, Callable[[], Any]] = {
    "chemprop": chemprop,
    "darts": darts,
    "gluonts": gluonts,
    "neuralforecast": neuralforecast,
    "pytorch_forecasting": pytorch_forecasting,
    "scvi": scvi,
}

if __name__ == "__main__":
    print("FIGURES " + json.dumps(SCENARIOS[PACKAGE]()))
