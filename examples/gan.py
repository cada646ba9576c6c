"""Draw digits that nobody wrote: two networks, two optimizers, manual optimization.

python -m examples.gan                          # prints the metric, ends with gan.png
raylit fit --config configs/gan.yaml

The generator learns to draw the digit that it is asked for, the critic to tell drawings from
scikit-learn's digits. Drawn from the running mean of the weights (EMA), 100 images of each epoch go
to MLflow. The metric: the share of drawings that the three nearest real digits, never seen in
training, take for the digit that was asked for. That of real digits is the most that can be had; a
distance between the clouds of drawn and real images (Fréchet) tells whether they also differ among
each other as real ones do.
"""

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import raylit as pl
from raylit.callbacks import EMAWeightAveraging, ImageLogger


def network(inputs: int, width: int, outputs: int, dropout: float = 0.0) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(inputs, width), nn.LeakyReLU(0.2), nn.Dropout(dropout)),
        *(
            nn.Linear(width, width),
            nn.LeakyReLU(0.2),
            nn.Dropout(dropout),
            nn.Linear(width, outputs),
        ),
    )


class LitGAN(pl.LightningModule):
    """A conditional GAN with the logistic loss and a penalty on the critic's gradient.

    Source: Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661; the penalty, R1: Mescheder et
    al. 2018, https://arxiv.org/abs/1801.04406.

    Args:
        noise: numbers that an image is drawn from.
        penalty: weight of the squared gradient at real images.
    """

    def __init__(self, width: int = 256, noise: int = 32, lr: float = 1e-3, penalty: float = 0.5):
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = network(noise + 10, width, 64)
        self.critic = network(64 + 10, width, 1, dropout=0.1)

    def forward(self, label: Tensor) -> Tensor:
        """Draw digits, (n, 64) from 0 to 1."""
        noise = torch.randn(len(label), self.hparams.noise, device=label.device)
        return self.generator(
            torch.cat([noise, nn.functional.one_hot(label, 10).float()], 1)
        ).sigmoid()

    def judge(self, image: Tensor, label: Tensor) -> Tensor:
        return self.critic(torch.cat([image * 2 - 1, nn.functional.one_hot(label, 10).float()], 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        image, label = batch
        of_generator, of_critic = self.optimizers()
        image = image.requires_grad_()
        real = self.judge(image, label)
        (slope,) = torch.autograd.grad(real.sum(), image, create_graph=True)
        drawn = self.judge(self(label).detach(), label)
        loss = nn.functional.softplus(drawn).mean() + nn.functional.softplus(-real).mean()
        of_critic.zero_grad()
        self.manual_backward(loss + self.hparams.penalty * slope.square().sum(1).mean())
        of_critic.step()

        self.toggle_optimizer(of_generator)
        fooled = nn.functional.softplus(-self.judge(self(label), label)).mean()
        of_generator.zero_grad()
        self.manual_backward(fooled)
        of_generator.step()
        self.untoggle_optimizer(of_generator)
        self.log_dict({"critic_loss": loss, "generator_loss": fooled}, prog_bar=True)

    def on_validation_epoch_start(self) -> None:
        self.real: list[Tensor] = []
        self.labels: list[Tensor] = []

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.real.append(batch[0])
        self.labels.append(batch[1])

    def on_validation_epoch_end(self) -> None:
        real, labels = torch.cat(self.real).cpu(), torch.cat(self.labels).cpu()
        nearest = KNeighborsClassifier(3).fit(real, labels)
        wanted = torch.arange(1000, device=self.device) % 10
        drawn = self(wanted).cpu()
        right = (torch.tensor(nearest.predict(drawn)) == wanted.cpu()).float().mean()
        self.log("recognised", right, prog_bar=True)
        self.log("frechet", frechet(real, drawn), prog_bar=True)

    def sample_images(self) -> Tensor:
        """Ten drawings of each digit, for ImageLogger."""
        return self(torch.arange(100, device=self.device) % 10).view(-1, 1, 8, 8)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.Adam(part.parameters(), lr=self.hparams.lr, betas=(0.0, 0.99))
            for part in (self.generator, self.critic)
        ]


def frechet(one: Tensor, other: Tensor) -> Tensor:
    """Return the Fréchet distance of two clouds of images, taken as normal distributions of pixels.

    Source: Heusel et al. 2017, https://arxiv.org/abs/1706.08500, there of a network's features.
    """
    shift = (one.mean(0) - other.mean(0)).square().sum()
    spreads = [torch.cov(part.T.double()) for part in (one, other)]
    root = torch.linalg.eigvals(spreads[0] @ spreads[1]).sqrt().real.sum()
    return shift + (spreads[0].trace() + spreads[1].trace() - 2 * root)


class Digits(pl.LightningDataModule):
    def __init__(self, batch_size: int = 64):
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        images, labels = map(torch.tensor, load_digits(return_X_y=True))
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
        self.parts = [
            TensorDataset(images[part].float() / 16, labels[part])
            for part in order.split([1297, 500])
        ]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[0], self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[1], batch_size=500)


def picture(model: LitGAN, metrics: dict[str, float]) -> Figure:
    """Draw five drawings of each digit."""
    images = model.eval().sample_images()[:50].detach().view(5, 10, 8, 8)
    figure = Figure(figsize=(5, 2.9), layout="constrained")
    axes = figure.subplots()
    padded = nn.functional.pad(images, (0, 1, 0, 1)).permute(0, 2, 1, 3).reshape(45, 90)
    axes.imshow(padded.numpy(), cmap="gray")
    axes.set_axis_off()
    title = (
        f"drawn, not written: {metrics['recognised']:.1%} taken for the digit that was asked for"
    )
    axes.set_title(title, fontsize=9)
    return figure


if __name__ == "__main__":
    pl.seed_everything(1)
    ema = EMAWeightAveraging(decay=0.998)
    trainer = pl.Trainer(
        max_epochs=150,
        check_val_every_n_epoch=5,
        log_every_n_steps=20,
        logger=pl.MLFlowLogger("gan"),
        callbacks=[ema, ImageLogger("sample_images", num_images=100)],
    )
    data = Digits()
    data.setup("fit")
    halves = data.parts[1].tensors[0][:250], data.parts[1].tensors[0][250:]
    print(f"between two halves of the real digits: {frechet(*halves):.3f}")
    model = LitGAN()
    result = trainer.fit(model, datamodule=data)
    print({name: round(float(value), 4) for name, value in result.metrics.items()})
    picture(model, result.metrics).savefig("gan.png", dpi=110)
