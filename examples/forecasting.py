"""Forecast a day of temperatures with its uncertainty, hour by hour.

python -m examples.forecasting             # prints errors and coverage, ends with forecasting.png
raylit fit --config configs/forecasting.yaml
raylit predict --config configs/forecasting.yaml --ckpt_path best      # writes forecasts/*.parquet

A year of Seattle and San Francisco from the package vega_datasets: January to August to learn from,
September and October to choose by, November and December to test on. From three days the next one
follows, as quantiles. It has to beat the day before (seasonal naive), which is hard to beat: these
temperatures are smooth, as those of an average year are.
"""

import os
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from vega_datasets import data as vega

import raylit as pl
from raylit.callbacks import BasePredictionWriter, ModelCheckpoint

PAST, AHEAD = 72, 24  # hours
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
CITIES = {"Seattle": "seattle_temps", "San Francisco": "sf_temps"}


def series(city: str) -> tuple[np.ndarray, Tensor]:
    """Return the hours of a year, and their temperatures in degrees Celsius."""
    table = getattr(vega, CITIES[city])().sort_values("date")
    celsius = (table["temp"].to_numpy(dtype=np.float32) - 32) / 1.8
    return table["date"].to_numpy(), torch.tensor(celsius)


class Temperatures(pl.LightningDataModule):
    """Windows of 96 hours from each hour (test and predict: each day), with city and first hour."""

    def __init__(self, batch_size: int = 128):
        super().__init__()
        self.batch_size = batch_size

    def windows(self, begin: str, end: str, stride: int) -> TensorDataset:
        found = []
        for index, city in enumerate(CITIES):
            hours, celsius = series(city)
            inside = torch.tensor((hours >= np.datetime64(begin)) & (hours < np.datetime64(end)))
            rows = celsius[inside].unfold(0, PAST + AHEAD, stride)
            first = torch.arange(len(rows)) * stride + int(inside.int().argmax()) + PAST
            found.append((rows, first, torch.full((len(rows),), index)))
        return TensorDataset(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(
            self.windows("2010-01-01", "2010-09-01", 1), self.batch_size, shuffle=True
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.windows("2010-09-01", "2010-11-01", 6), 512)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.windows("2010-11-01", "2011-01-01", 24), 512)

    predict_dataloader = test_dataloader


class LitForecast(pl.LightningModule):
    """Quantiles of the difference to the day before, by convolutions over three days."""

    def __init__(self, width: int = 48, lr: float = 3e-3):
        super().__init__()
        self.save_hyperparameters()
        self.read = nn.Sequential(
            *(nn.Conv1d(2, width, 6, stride=3), nn.ReLU()),
            *(nn.Conv1d(width, width, 6, stride=3), nn.ReLU(), nn.Flatten()),
        )
        self.head = nn.Sequential(
            *(nn.Linear(6 * width + AHEAD, 2 * width), nn.ReLU()),
            nn.Linear(2 * width, AHEAD * len(QUANTILES)),
        )

    def forward(self, past: Tensor) -> Tensor:
        """Return quantiles, (n, 24 hours, 5), of the day after `past` (n, 72 hours)."""
        naive = past[:, -AHEAD:]
        change = past - past.roll(AHEAD, 1)
        change[:, :AHEAD] = 0
        scale = change.abs().mean(1, keepdim=True) + 0.1
        level = (past - past.mean(1, keepdim=True)) / 5
        state = self.read(torch.stack([change / scale, level], 1))
        raw = self.head(torch.cat([state, change[:, -AHEAD:] / scale], 1))
        raw = raw.view(-1, AHEAD, len(QUANTILES))
        steps = torch.cat([raw[..., :1], nn.functional.softplus(raw[..., 1:])], 2)  # never cross
        return naive[..., None] + scale[..., None] * (steps.cumsum(2) - 1)

    def loss(self, quantiles: Tensor, truth: Tensor) -> Tensor:
        """Return the pinball loss, whose minimum is at the quantiles.

        Source: Koenker and Bassett 1978, https://doi.org/10.2307/1913643.
        """
        miss = truth[..., None] - quantiles
        levels = torch.tensor(QUANTILES, device=miss.device)
        return torch.maximum(levels * miss, (levels - 1) * miss).mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(self(batch[0][:, :PAST]), batch[0][:, PAST:])
        self.log("train_loss", loss, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int, stage: str = "val") -> None:
        past, truth = batch[0][:, :PAST], batch[0][:, PAST:]
        found = self(past)
        inside = (truth >= found[..., 0]) & (truth <= found[..., -1])
        self.log(f"{stage}_loss", self.loss(found, truth), prog_bar=True)
        self.log(f"{stage}_error", (found[..., 2] - truth).abs().mean(), prog_bar=True)
        self.log(f"{stage}_error_naive", (past[:, -AHEAD:] - truth).abs().mean(), prog_bar=True)
        self.log(f"{stage}_inside_90", inside.float().mean())

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx, "test")

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch[0][:, :PAST])

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.hparams.lr, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class ForecastWriter(BasePredictionWriter):
    """Writes a Parquet file of each batch: city, hour, quantiles and what came."""

    def __init__(self, folder: str = "forecasts"):
        super().__init__("batch")
        self.folder = folder

    def write_on_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        prediction: Tensor,
        batch_indices: Sequence[int] | None,
        batch: list[Tensor],
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        os.makedirs(self.folder, exist_ok=True)
        rows, first, city = (part.cpu() for part in batch)
        index = city.repeat_interleave(AHEAD).numpy()
        hours = (first[:, None] + torch.arange(AHEAD)).flatten().numpy()
        columns = {
            "city": np.array([*CITIES])[index],
            "hour": np.stack([series(name)[0] for name in CITIES])[index, hours],
            "celsius": rows[:, PAST:].flatten().numpy(),
            "day_before": rows[:, PAST - AHEAD : PAST].flatten().numpy(),
        }
        for level, values in zip(QUANTILES, prediction.cpu().unbind(2), strict=True):
            columns[f"q{level:.0%}"] = values.flatten().numpy()
        path = f"{self.folder}/{trainer.global_rank}-{batch_idx}.parquet"
        pq.write_table(pa.table(columns), path)


def picture(folder: str = "forecasts", days: int = 7) -> Figure:
    """Draw what was forecast and what came, as differences to the day before."""
    table = pq.read_table(folder).to_pandas()
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    for axes, city in zip(figure.subplots(2, 1, sharex=True), CITIES, strict=True):
        rows = table[table["city"] == city].sort_values("hour")[: 24 * days]
        hour, new = (
            rows["hour"],
            rows[["q5%", "q50%", "q95%", "celsius"]].sub(rows["day_before"], 0),
        )
        axes.fill_between(hour, new["q5%"], new["q95%"], color="#a9cef4", label="90 % interval")
        axes.plot(hour, new["q50%"], color="#4c9be8", label="median")
        axes.plot(hour, new["celsius"], ".", color="#1f2933", markersize=2, label="came")
        axes.axhline(0, color="gray", linewidth=0.8, linestyle="--")
        axes.set_title(f"{city}: degrees warmer than the day before", fontsize=9)
        axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, ncols=3)
    return figure


if __name__ == "__main__":
    pl.seed_everything(1)
    callbacks = [ModelCheckpoint(monitor="val_loss"), ForecastWriter()]
    trainer = pl.Trainer(max_epochs=20, logger=pl.MLFlowLogger("forecasting"), callbacks=callbacks)
    data = Temperatures()
    trainer.fit(LitForecast(), datamodule=data)
    trainer.test(datamodule=data, ckpt_path="best")
    trainer.predict(datamodule=data, ckpt_path="best", return_predictions=False)
    picture().savefig("forecasting.png", dpi=110)
