"""`Trainer.explain`: what is planted is found, what is random is told, and ranks agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import raylit as pl
from raylit.engine.run import in_eval_mode
from raylit.errors import ConfigError
from raylit.explain import Explanation
from raylit.explain.explain import _rank_correlation, _ranks
from raylit.explain.methods import METHODS
from tests.quiet import trainer

PLANTED = 3  # the only feature that the labels depend on
NUM_SAMPLES = 22


class Table(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.03)


def table(num_samples: int = NUM_SAMPLES, batch_size: int = 4) -> DataLoader[Any]:
    x = torch.randn(num_samples, 6, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, (x[:, PLANTED] > 0).long()), batch_size=batch_size)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Table:
    pl.seed_everything(0)
    model = Table()
    one = trainer(tmp_path_factory.mktemp("trained"), max_epochs=15, num_sanity_val_steps=0)
    one.fit(model, table(256, 32))
    return model


class Mixed(pl.LightningModule):
    """An image of which the upper left corner counts, and a text of which the word 7 counts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.embedding = nn.Embedding(9, 4)
        with torch.no_grad():
            self.embedding.weight.fill_(0.1)
            self.embedding.weight[7] = 2.0

    def forward(self, image: Tensor, words: Tensor) -> Tensor:
        corner = self.conv(image)[..., :4, :4].relu().sum((1, 2, 3))
        text = self.embedding(words).tanh().sum((1, 2))
        return torch.stack([corner, text, corner + text], 1)


class Samples(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        words = torch.randint(0, 6, (5,), generator=generator)
        words[index % 5] = 7
        return {"image": torch.rand(1, 8, 8, generator=generator) + 0.1, "words": words}


def mixed(tmp_path: Path, **arguments: Any) -> Explanation:
    torch.manual_seed(0)
    arguments = {"layer": "embedding", "target": 2, **arguments}
    return trainer(tmp_path).explain(Mixed(), DataLoader(Samples(), batch_size=3), **arguments)


@pytest.mark.parametrize("method", [one for one in METHODS if one != "layer_gradcam"])
def test_a_planted_feature_is_found(tmp_path: Path, trained: Table, method: str) -> None:
    names = [f"column{index}" for index in range(6)]
    one = trainer(tmp_path)
    found = one.explain(trained, table(), method=method, target=1, feature_names=names)
    assert found.attributions["x"].shape == (NUM_SAMPLES, 6)
    (first, most), (_, next_most), *_ = found.importance().items()
    assert first == f"column{PLANTED}"
    assert most > 3 * next_most


def test_integrated_gradients_add_up_to_the_outputs_difference(
    tmp_path: Path, trained: Table
) -> None:
    found = trainer(tmp_path).explain(trained, table(), target="label", internal_batch_size=8)
    assert found.deltas is not None
    assert np.abs(found.deltas).max() < 1e-4
    with torch.no_grad():
        at_zero = trained.eval()(torch.zeros(1, 6))[0].numpy()
    labels = torch.cat([labels for _, labels in table()]).numpy()
    assert (found.targets == labels).all()
    of_target = np.take_along_axis(found.outputs, labels[:, None], 1)[:, 0]
    total = found.attributions["x"].sum(1)
    np.testing.assert_allclose(total, of_target - at_zero[labels], atol=1e-4)


def test_random_weights_give_other_attributions(tmp_path: Path, trained: Table) -> None:
    before = {name: one.clone() for name, one in trained.state_dict().items()}
    found = trainer(tmp_path).explain(trained, table(batch_size=22), sanity_check=True)
    assert found.randomized is not None
    assert abs(found.randomized) < 0.8
    assert all(torch.equal(one, before[name]) for name, one in trained.state_dict().items())


def test_what_is_zero_in_both_does_not_make_attributions_alike() -> None:
    background = np.zeros(1000)
    one = np.concatenate([background, [1.0, 2.0, 3.0, 4.0]])
    other = np.concatenate([background, [4.0, 3.0, 2.0, 1.0]])
    assert _rank_correlation(one, other) == pytest.approx(-1)
    assert _rank_correlation(one, one) == pytest.approx(1)
    assert _rank_correlation(np.zeros(1004), one) == 0
    ties = _ranks(np.array([5.0, 1.0, 5.0, 2.0]))
    assert ties.tolist() == [3.5, 1, 3.5, 2]


def test_what_shows_the_input_alone_is_warned_of(tmp_path: Path, trained: Table) -> None:
    class EdgeDetector:
        def __init__(self, function: Any) -> None: ...

        def attribute(self, inputs: Any, target: Any = None) -> Any:
            return inputs

    with pytest.warns(UserWarning, match="almost those of the same model with random weights"):
        trainer(tmp_path).explain(trained, table(), method=EdgeDetector, sanity_check=True)


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion", "feature_ablation"])
def test_images_and_words_are_explained_together(tmp_path: Path, method: str) -> None:
    found = mixed(tmp_path, method=method)
    assert found.attributions["image"].shape == (7, 1, 8, 8)
    words = found.attributions["embedding"]
    assert words.shape == (7, 5)
    assert list(words.argmax(1)) == [index % 5 for index in range(7)]
    image = np.abs(found.attributions["image"])
    assert image[..., :5, :5].sum() > 20 * image[..., 5:, :].sum()


def test_gradcam_looks_at_the_last_convolution(tmp_path: Path) -> None:
    found = mixed(tmp_path, method="layer_gradcam", layer=(), target=0)
    assert found.attributions["image"].shape == (7, 1, 8, 8)


def test_an_object_of_captum_is_a_method(tmp_path: Path, trained: Table) -> None:
    from captum.attr import InputXGradient, NoiseTunnel, Saliency

    one = trainer(tmp_path)
    by_class = one.explain(trained, table(), method=InputXGradient, target=1)
    by_object = one.explain(trained, table(), method=InputXGradient(trained), target=1)
    np.testing.assert_array_equal(by_class.attributions["x"], by_object.attributions["x"])
    tunnel = one.explain(trained, table(), method=lambda function: NoiseTunnel(Saliency(function)))
    assert next(iter(tunnel.importance())) == f"x[{PLANTED}]"


@pytest.mark.ray
def test_two_workers_give_the_attributions_of_one_process(
    ray_cluster: str, tmp_path: Path, trained: Table
) -> None:
    alone = trainer(tmp_path).explain(trained, table())
    both = trainer(tmp_path, num_workers=2, accelerator="cpu").explain(trained, table())
    np.testing.assert_allclose(both.attributions["x"], alone.attributions["x"], atol=1e-6)
    np.testing.assert_array_equal(both.inputs["x"], alone.inputs["x"])
    np.testing.assert_array_equal(both.targets, alone.targets)
    assert both.deltas is not None
    assert len(both.deltas) == NUM_SAMPLES


def test_an_explanation_is_drawn_and_kept(tmp_path: Path, trained: Table) -> None:
    found = mixed(tmp_path, method="saliency")
    found.save(tmp_path / "found.npz")
    with np.load(tmp_path / "found.npz") as kept:
        np.testing.assert_array_equal(kept["attributions.image"], found.attributions["image"])
        np.testing.assert_array_equal(kept["inputs.words"], found.inputs["words"])
    for dark in (False, True):
        figure = found.plot(dark=dark)
        figure.savefig(tmp_path / f"{dark}.png")
        assert (tmp_path / f"{dark}.png").stat().st_size > 10_000
        texts = [one.get_text() for part in figure.subfigs for one in part.texts]
        assert "image: saliency" in texts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "saliancy"}, "Did you mean 'saliency'"),
        ({"layer": ()}, None),
        ({"layer": "embeding"}, "no such layer. Did you mean 'embedding'"),
        ({"target": 12}, "there is no output 12, forward returns 3 of them"),
        ({"target": "labels"}, "target='labels'"),
        ({"target": "label"}, "has no labels"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"feature_names": ["a", "b"]}, "feature_names names 2 features, but image has"),
        ({"method": 3}, "neither a name nor an object of captum"),
    ],
)
def test_bad_input_is_told(tmp_path: Path, arguments: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert list(mixed(tmp_path, **arguments).attributions) == ["image"]
        return
    with pytest.raises(ConfigError, match=message):
        mixed(tmp_path, **arguments)


def test_a_fit_after_it_trains(tmp_path: Path) -> None:
    module = Table()
    module.net[2].eval()  # a part that is frozen stays so
    before = [one.training for one in module.modules()]
    trainer(tmp_path).explain(module, table())
    assert [one.training for one in module.modules()] == before
    with pytest.raises(ConfigError):
        trainer(tmp_path).explain(module, table(), target=12)
    assert [one.training for one in module.modules()] == before
    trainer(tmp_path).export(module, tmp_path / "a.pt2", dataloaders=table(), verbose=False)
    assert [one.training for one in module.modules()] == before


class Counts(Table):
    """Counts the calls of `forward`, in a buffer that it replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return super().forward(x)  # type: ignore[no-any-return]


def test_what_forward_counts_is_as_before(tmp_path: Path) -> None:
    module = Counts()
    trainer(tmp_path).explain(module, table())
    trainer(tmp_path).export(module, tmp_path / "a.onnx", dataloaders=table(), verbose=False)
    assert module.calls == 0


def test_buffers_that_share_memory_still_do() -> None:
    module = nn.BatchNorm1d(2)
    whole = torch.zeros(4)
    module.register_buffer("part", whole[:2])
    lazy = nn.LazyBatchNorm1d()
    with in_eval_mode(nn.Sequential(module, lazy)):
        whole += 1
        lazy(torch.rand(3, 5))
    assert whole.tolist() == [0] * 4 and not torch.nn.parameter.is_lazy(lazy.running_mean)
    whole.fill_(5)
    assert module.part.tolist() == [5, 5]


class Words(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.vocabulary = nn.Embedding(9, 4)

    def forward(self, words: Tensor) -> Tensor:
        return self.vocabulary(words).sum(1)


def test_integers_without_a_layer_name_the_embedding(tmp_path: Path) -> None:
    loader = DataLoader(Samples(), batch_size=3)
    with pytest.raises(ConfigError, match=r"integers have no gradient.*layer='vocabulary'"):
        trainer(tmp_path).explain(Words(), loader)
    with pytest.raises(ConfigError, match="has no Conv2d"):
        trainer(tmp_path).explain(Table(), table(), method="layer_gradcam")


class UsesOne(pl.LightningModule):
    def __init__(self, detaches: bool = False) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)
        self.detaches = detaches

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        found: Tensor = self.net(a)
        return found.detach() if self.detaches else found


@pytest.mark.parametrize("method", ["integrated_gradients", "saliency"])
def test_an_input_that_is_not_used_gets_zeros(tmp_path: Path, method: str) -> None:
    data = [{"a": torch.rand(3) + 1, "b": torch.ones(2)} for _ in range(4)]
    loader = DataLoader(data, batch_size=2)  # type: ignore[arg-type]  # a list is a dataset
    found = trainer(tmp_path).explain(UsesOne(), loader, method=method, target=0).attributions
    assert (found["a"] != 0).all()
    assert (found["b"] == 0).all()
    with pytest.raises(ConfigError, match=r"output of UsesOne\.forward has no gradients"):
        trainer(tmp_path).explain(UsesOne(detaches=True), loader, method=method, target=0)


class Bytes(pl.LightningModule):
    """Takes images of bytes, as cameras and files give them."""

    def __init__(self, scales_bytes_alone: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 2))
        self.scales_bytes_alone = scales_bytes_alone

    def forward(self, image: Tensor) -> Tensor:
        scale = 1 if self.scales_bytes_alone and image.is_floating_point() else 255
        return self.net(image.float() / scale)


@pytest.mark.parametrize("method", [one for one in METHODS if one != "layer_gradcam"])
def test_images_of_bytes_are_explained(tmp_path: Path, method: str) -> None:
    images = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8)
    loader = DataLoader(TensorDataset(images), batch_size=3)
    found = trainer(tmp_path).explain(Bytes(), loader, method=method, target=1)
    assert found.attributions["image"].shape == (6, 3, 4, 4)
    assert (found.inputs["image"] == images.numpy()).all(), "which are shown as they are"
    assert found.plot().axes
    if method == "integrated_gradients":
        assert found.deltas is not None and np.abs(found.deltas).max() < 1e-4


def test_bytes_that_are_not_what_floats_are(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8)
    loader = DataLoader(TensorDataset(images), batch_size=3)
    with pytest.raises(ConfigError, match=r"image holds bytes \(uint8\).*on_after_batch_transfer"):
        trainer(tmp_path).explain(Bytes(scales_bytes_alone=True), loader)
