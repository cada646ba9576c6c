"""The examples: each in short, as a user runs it, and in the long form that reaches its figure."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import raylit as pl
from raylit.cli.command import main
from tests.deadlines import stretched

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem != "__init__")
SHORT = (
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
)
Raylit = Callable[..., None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("examples")
    for name in ("configs", "examples"):
        (here / name).symlink_to(ROOT / name)
    return here


@pytest.fixture
def raylit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Raylit:
    """`raylit COMMAND --config configs/NAME.yaml` in the folder, with few batches."""
    monkeypatch.chdir(folder)
    for name in ("MLFLOW_TRACKING_URI", "PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "")  # so that it is put back, whatever the command sets
        monkeypatch.delenv(name)

    def call(command: str, name: str, *flags: str) -> None:
        assert main([command, "--config", f"configs/{name}.yaml", *SHORT, *flags]) == 0

    return call


def test_glyphs(raylit: Raylit) -> None:
    from examples.glyphs import SUBSETS, picture

    raylit("fit", "glyphs")
    raylit("test", "glyphs", "--ckpt_path=last", "--trainer.limit_test_batches=1")
    metrics = {f"test_acc_{name}": 0.5 for name in SUBSETS}
    picture(metrics | {f"test_recall5_{name}": 0.5 for name in SUBSETS}).savefig("glyphs.png")


def test_finetune(raylit: Raylit, folder: Path) -> None:
    from examples.finetune import picture
    from examples.glyphs import LitGlyphs

    model = LitGlyphs()
    saved = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "pytorch-lightning_version": "2.6.6",
    }
    torch.save(saved, folder / "glyphs.ckpt")
    raylit("fit", "finetune", "--trainer.max_epochs=5", "--trainer.check_val_every_n_epoch=5")
    picture({"pretrained": [0.9, 0.8], "from nothing": [0.6, 0.7]}).savefig("finetune.png")


def test_the_backbone_thaws_with_a_rate_for_each_layer(tmp_path: Path) -> None:
    from examples.finetune import FewDigits, LayerwiseFinetuning, LitFewDigits

    trainer = pl.Trainer(
        max_epochs=2,
        limit_train_batches=1,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        callbacks=[LayerwiseFinetuning(epoch=1, decay=0.1)],
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    data = FewDigits(num_labels=3)
    trainer.fit(LitFewDigits(lr=1.0), datamodule=data)
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    assert rates == pytest.approx([1.0, 0.1, 0.01, 1e-3, 1e-4])
    assert [len(part) for part in data.parts] == [30, 300, 1467]
    labels = data.parts[0].tensors[1]
    assert torch.bincount(labels).tolist() == [3] * 10


def test_gan(raylit: Raylit, folder: Path) -> None:
    from examples.gan import LitGAN, frechet, picture

    raylit("fit", "gan")
    images = list((folder / "mlruns").rglob("images/sample_images*.png"))
    assert len(images) == 1, "one an epoch"
    picture(LitGAN(), {"recognised": 0.9}).savefig("gan.png")
    cloud = torch.rand(100, 3, generator=torch.Generator().manual_seed(0))
    assert frechet(cloud, cloud).item() == pytest.approx(0, abs=1e-6)
    assert frechet(cloud, cloud + 1).item() == pytest.approx(3, abs=1e-5)


def test_forecasting(raylit: Raylit, folder: Path) -> None:
    import pyarrow.parquet as pq

    from examples.forecasting import AHEAD, PAST, LitForecast, Temperatures, picture, series

    raylit("fit", "forecasting")
    raylit("predict", "forecasting", "--ckpt_path=last")
    table = pq.read_table(folder / "forecasts").to_pandas()
    assert len(table) == 2 * 58 * AHEAD
    assert (table["q5%"] <= table["q50%"]).all() and (table["q50%"] <= table["q95%"]).all()
    for city, rows in table.groupby("city"):
        hours, celsius = series(str(city))
        truth = dict(zip(hours, celsius.tolist(), strict=True))
        came = [truth[hour.to_datetime64()] for hour in rows["hour"]]
        assert rows["celsius"].tolist() == pytest.approx(came)
    picture().savefig("forecasting.png")
    rows, *_ = Temperatures().test_dataloader().dataset[0]
    assert rows.shape == (PAST + AHEAD,)
    assert LitForecast()(rows[None, :PAST]).shape == (1, AHEAD, 5)


def test_lm(raylit: Raylit, folder: Path) -> None:
    from examples.lm import GPT, picture
    from examples.lm_data import VAL, encode, merges

    small = ("--model.num_tokens=160", "--model.width=16", "--model.num_blocks=1")
    raylit("fit", "lm", *small, "--data.num_tokens=160", "--trainer.val_check_interval=1.0")
    (sample,) = (folder / "mlruns").rglob("sample_text/*.txt")
    assert sample.read_text().startswith("The ")
    tokens, _ = merges(160)
    assert "".join(tokens[index] for index in encode(VAL, 160)) == VAL
    text = GPT(160, 16, 1).eval().sample_text(number=5)[0]
    picture([{"step": 1, "val_bpc": 3.0}, {"step": 2, "train_loss": 2.0}], text).savefig("lm.png")


def test_bits_per_character_count_each_character_once(folder: Path) -> None:
    """Windows of validation touch, and what fills the last one up does not count."""
    from examples.lm_data import VAL, Topics, merges

    data = Topics(num_tokens=160, length=64)
    tokens, _ = merges(160)
    seen = [part for (window,) in data.val_dataloader().dataset for part in window[1:].tolist()]
    assert sum(len(tokens[part]) for part in seen if part >= 0) == len(VAL) - len(
        tokens[_first(data)]
    )


def _first(data: pl.LightningDataModule) -> int:
    return int(data.val_dataloader().dataset[0][0][0])


def test_importance_finds_what_the_price_depends_on() -> None:
    from examples.diamonds import NUMBERS, LitDiamonds, importance, picture

    generator = torch.Generator().manual_seed(0)
    model = LitDiamonds({"cut": 3}).eval()
    batch = {name: torch.randn(50, generator=generator) for name in NUMBERS}
    batch["cut"] = torch.randint(3, (50,), generator=generator)
    with torch.no_grad():
        first = model.net[0]
        first.weight[:, 1:] = 0  # of all columns carat alone goes in
        batch["price"] = model(batch).exp()
    lost = importance(model, batch)
    assert next(iter(lost)) == "carat" and lost["carat"] > 0.5
    assert all(abs(value) < 1e-5 for name, value in lost.items() if name != "carat")
    picture(lost)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_it_is_run(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 200
    if not path.stem.endswith("_data"):
        assert "\npython -m examples." in (ast.get_docstring(ast.parse(text)) or "")


def test_the_gallery_shows_each_example_with_its_command() -> None:
    gallery = (ROOT / "examples" / "README.md").read_text()
    for path in EXAMPLES:
        if path.stem.endswith("_data"):
            continue
        assert f"examples.{path.stem}" in gallery or f"configs/{path.stem}.yaml" in gallery
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", gallery)
    assert len(pictures) >= 5
    for picture in pictures:
        assert 2_000 < (ROOT / "examples" / picture).stat().st_size < 150_000


def script(folder: Path, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *args],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=stretched(3600),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def figure(text: str, name: str) -> float:
    """Return a value of the table that a test prints."""
    return float(re.findall(rf"{name} +│ +([0-9.]+)", text)[-1])


@pytest.mark.long
def test_glyphs_and_finetune_reach_their_figures(folder: Path) -> None:
    text = script(folder, "examples.glyphs")
    single = max(figure(text, f"test_acc_{name}") for name in ("image", "name", "table"))
    without = [figure(text, f"test_acc_no_{name}") for name in ("image", "name", "table")]
    assert figure(text, "test_acc_all") > 1.5 * single
    assert min(without) > 0.45 * figure(text, "test_acc_all")
    alone = max(figure(text, f"test_recall5_{name}") for name in ("image", "table"))
    assert figure(text, "test_recall5_all") > 1.5 * alone
    found = ast.literal_eval(script(folder, "examples.finetune").splitlines()[-1])
    for pretrained, from_nothing in zip(*found.values(), strict=True):
        assert pretrained > from_nothing


@pytest.mark.long
def test_gan_reaches_its_figure(folder: Path) -> None:
    found = ast.literal_eval(script(folder, "examples.gan").splitlines()[-1])
    assert found["recognised"] > 0.9


@pytest.mark.long
def test_forecasting_beats_the_day_before(folder: Path) -> None:
    text = script(folder, "examples.forecasting")
    assert figure(text, "test_error") < figure(text, "test_error_naive")


@pytest.mark.long
def test_lm_reaches_its_figure(folder: Path) -> None:
    found = ast.literal_eval(script(folder, "examples.lm").splitlines()[-1])
    assert found["val_bpc"] < 2.5


@pytest.mark.long
def test_diamonds_reach_their_figure(folder: Path) -> None:
    script(folder, "examples.diamonds")
    text = script(folder, "examples.diamonds", "importance")
    assert figure(text, "test_r2") >= 0.97
