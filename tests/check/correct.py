"""Small models with nothing wrong, of kinds that a check has to let pass."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import raylit as pl

Case = tuple[pl.LightningModule, Any]
CORRECT: dict[str, Callable[[], Case]] = {}


def correct(make: Callable[[], Case]) -> Callable[[], Case]:
    CORRECT[make.__name__] = make
    return make


class Base(pl.LightningModule):
    """Adam for all; `training_step` is the subclass's."""

    lr = 1e-2

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), self.lr)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def load(*tensors: Tensor, batch_size: int | None = 16) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), batch_size)


def mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def digits() -> tuple[Tensor, Tensor]:
    """Points of five classes that a small net can tell apart."""
    x = randn(64, 8)
    return x, x[:, :5].argmax(1)


@correct
def binary_classifier_with_ten_percent_positives() -> Case:
    class Binary(Base):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(20, 128, 128, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.binary_cross_entropy_with_logits(self.net(batch[0]).squeeze(1), batch[1])

    x = randn(64, 20, seed=5)
    return Binary(), load(x, (x[:, 0] > 1.28).float(), batch_size=32)


@correct
def clip() -> Case:
    class Clip(Base):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.text = nn.Linear(20, 16), nn.Linear(20, 16)
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, image: Tensor, text: Tensor) -> Tensor:
            image, text = F.normalize(self.image(image)), F.normalize(self.text(text))
            return image @ text.T * self.scale.exp()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            logits = self(*batch)
            target = torch.arange(len(logits))
            return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    x = randn(64, 20)
    return Clip(), load(x, x + 0.1 * randn(64, 20, seed=1))


@correct
def time_major_rnn_with_as_many_steps_as_samples() -> Case:
    class Recurrent(Base):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(8, 16), nn.Linear(16, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0][-1]).squeeze(1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.mse_loss(self(batch[0].transpose(0, 1)), batch[1])

    x = randn(64, 16, 8)
    return Recurrent(), load(x, x[:, :, 0].mean(1))


@correct
def full_batch_graph() -> Case:
    class Graph(Base):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return self.last(edges @ self.first(x).relu())

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch[0], batch[1]), batch[2])

    x = randn(50, 8)
    edges = (torch.rand(50, 50, generator=generator()) < 0.1).float() + torch.eye(50)
    target = (edges @ x)[:, :3].argmax(1)
    return Graph(), DataLoader([(x, edges, target)], batch_size=None)  # type: ignore[arg-type]


@correct
def graph_whose_edges_are_in_the_model() -> Case:
    class Graph(Base):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("edges", torch.eye(50).roll(1, 0) + torch.eye(50))
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.edges @ self.first(x).relu())

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1])

    x = randn(50, 8)
    return Graph(), DataLoader([(x, x[:, :3].argmax(1))], batch_size=None)  # type: ignore[arg-type]


class Gan(pl.LightningModule):
    """Two optimizers by hand; the generator steps every `every` batches."""

    def __init__(self, every: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.every = every
        self.generator, self.critic = mlp(4, 16, 2), mlp(2, 16, 1)

    def configure_optimizers(self) -> Any:
        return [
            torch.optim.Adam(part.parameters(), 1e-3, (0.5, 0.9))
            for part in (self.generator, self.critic)
        ]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        (real,) = batch
        of_generator, of_critic = self.optimizers()
        fake = self.generator(torch.randn(len(real), 4))
        losses = self.losses(self.critic(real), self.critic(fake.detach()))
        of_critic.zero_grad()
        self.manual_backward(losses)
        of_critic.step()
        if (batch_idx + 1) % self.every == 0:
            of_generator.zero_grad()
            self.manual_backward(self.loss_of_generator(self.critic(fake)))
            of_generator.step()

    def losses(self, real: Tensor, fake: Tensor) -> Tensor:
        return fake.mean() - real.mean()

    def loss_of_generator(self, fake: Tensor) -> Tensor:
        return -fake.mean()


@correct
def lsgan() -> Case:
    class LeastSquares(Gan):
        def losses(self, real: Tensor, fake: Tensor) -> Tensor:
            ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
            return F.mse_loss(real, ones) + F.mse_loss(fake, zeros)

        def loss_of_generator(self, fake: Tensor) -> Tensor:
            return F.mse_loss(fake, torch.ones_like(fake))

    return LeastSquares(), load(randn(64, 2) + 3)


@correct
def generator_that_steps_every_five_batches() -> Case:
    return Gan(every=5), load(randn(400, 2) + 3)


@correct
def generator_that_steps_every_hundred_batches() -> Case:
    return Gan(every=100), load(randn(1024, 2) + 3, batch_size=4)


@correct
def heads_for_other_batches() -> Case:
    class Heads(Base):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(8, 32, 32)
            self.heads = nn.ModuleList(nn.Linear(32, 3) for _ in range(3))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y, task = batch
            return F.cross_entropy(self.heads[int(task[0])](self.body(x).relu()), y)

    x = randn(192, 8)
    task = torch.arange(12).remainder(3).repeat_interleave(16)
    return Heads(), load(x, x[:, :3].argmax(1), task)


@correct
def head_for_batches_that_come_late() -> Case:
    class Late(Base):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.usual, self.rare = mlp(8, 32, 32), nn.Linear(32, 1), nn.Linear(32, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            head = self.rare if bool(x[0, 0] > 50) else self.usual
            return F.mse_loss(head(self.body(x)).squeeze(1), y)

    x = randn(640, 8)
    x[600:, 0] = 100
    return Late(), load(x, x[:, 1])


@correct
def self_distillation() -> Case:
    class Distils(Base):
        """The teacher follows the student, and is in the optimizer, where it gets no gradient."""

        def __init__(self) -> None:
            super().__init__()
            self.student = mlp(8, 32, 16)
            self.predictor = nn.Linear(16, 16)
            self.teacher = copy.deepcopy(self.student)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            (x,) = batch
            with torch.no_grad():
                for mine, other in zip(
                    self.teacher.parameters(), self.student.parameters(), strict=True
                ):
                    mine.lerp_(other, 0.05)
                target = F.normalize(self.teacher(x + 0.1 * torch.randn_like(x)))
            found = F.normalize(self.predictor(self.student(x + 0.1 * torch.randn_like(x))))
            return 2 - 2 * (found * target).sum(1).mean()

    return Distils(), load(randn(64, 8))


@correct
def frozen_teacher_in_no_optimizer() -> Case:
    class Teaches(Base):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = mlp(8, 16, 3), mlp(8, 32, 3)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            with torch.no_grad():
                target = self.teacher(batch[0]).softmax(1)
            return F.kl_div(self.student(batch[0]).log_softmax(1), target, reduction="batchmean")

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.student.parameters(), 1e-2)

    return Teaches(), load(randn(64, 8))


@correct
def causal_transformer() -> Case:
    class Causal(Base):
        lr = 3e-3

        def __init__(self) -> None:
            super().__init__()
            self.table, self.place = nn.Embedding(11, 32), nn.Parameter(torch.zeros(12, 32))
            layer = nn.TransformerEncoderLayer(32, 4, 64, 0.1, batch_first=True)
            self.layers, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(32, 11)

        def forward(self, x: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(x.size(1))
            return self.head(self.layers(self.table(x) + self.place[: x.size(1)], mask))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            (x,) = batch
            return F.cross_entropy(self(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    starts = torch.arange(64)[:, None]
    return Causal(), load((starts + torch.arange(13)) % 11)


@correct
def masked_attention_by_hand() -> Case:
    class Attends(Base):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
            self.soft, self.head = nn.Softmax(-1), nn.Linear(8, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, lengths, y = batch
            scores = self.query(x) @ self.key(x).mT / math.sqrt(8)
            is_padding = torch.arange(x.size(1)) >= lengths[:, None]
            weights = self.soft(scores.masked_fill(is_padding[:, None], float("-inf")))
            return F.mse_loss(self.head((weights @ self.value(x)).mean(1)).squeeze(1), y)

    x = randn(64, 16, 8)
    return Attends(), load(x, torch.arange(64) % 15 + 1, x[:, 0, 0])


class Autoencoder(Base):
    lr = 1e-3

    def __init__(self, sums: bool) -> None:
        super().__init__()
        self.sums = sums
        self.encoder, self.decoder = mlp(20, 32, 8), mlp(4, 32, 20)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        mean, log_variance = self.encoder(x).chunk(2, 1)
        code = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance) / 2
        if self.sums:
            found = F.mse_loss(self.decoder(code), x, reduction="sum")
            return (found + divergence.sum()) / len(x)
        return F.binary_cross_entropy_with_logits(self.decoder(code), x) + divergence.mean()


@correct
def vae() -> Case:
    return Autoencoder(sums=True), load(randn(64, 20))


@correct
def vae_of_bernoullis() -> Case:
    return Autoencoder(sums=False), load((randn(64, 20) > 0).float())


@correct
def simclr() -> Case:
    class Contrasts(Base):
        lr = 3e-3

        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(20, 64, 16)

        def forward(self, x: Tensor) -> Tensor:
            return F.normalize(self.net(x))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            (x,) = batch
            views = torch.cat([x + 0.5 * torch.randn_like(x) for _ in range(2)])
            codes = self(views)
            near = codes @ codes.T / 0.5
            near = near.masked_fill(torch.eye(len(near), dtype=torch.bool), float("-inf"))
            return F.cross_entropy(near, torch.arange(len(near)).roll(len(x)))

    return Contrasts(), load(randn(64, 20))


@correct
def diffusion() -> Case:
    class Diffuses(Base):
        lr = 1e-3

        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(3, 64, 64, 2)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            (x,) = batch
            step = (torch.rand(len(x), 1) * 100).long()
            keeps = torch.cos(step / 100 * math.pi / 2)
            noise = torch.randn_like(x)
            noisy = keeps * x + (1 - keeps**2).sqrt() * noise
            return F.mse_loss(self.net(torch.cat([noisy, step / 100], 1)), noise)

    return Diffuses(), load(randn(64, 2) + torch.tensor([3.0, -2.0]))


@correct
def finetuning_with_frozen_norms() -> Case:
    class Finetunes(Base):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU())
            self.body.requires_grad_(False)
            self.head = nn.Linear(32, 5)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.body.eval()
            return F.cross_entropy(self.head(self.body(batch[0])), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.head.parameters(), 3e-2)

    return Finetunes(), load(*digits())


@correct
def low_rank_adapters() -> Case:
    class Adapts(Base):
        lr = 3e-2

        def __init__(self) -> None:
            super().__init__()
            self.frozen = mlp(8, 32, 5).requires_grad_(False)
            self.down, self.up = nn.Linear(8, 4, bias=False), nn.Linear(4, 5, bias=False)
            nn.init.zeros_(self.up.weight)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.frozen(batch[0]) + self.up(self.down(batch[0])), batch[1])

    return Adapts(), load(*digits())


@correct
def warm_up_and_cosine() -> Case:
    class WarmsUp(Base):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(8, 32, 5)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1], label_smoothing=0.1)

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), 1e-2)
            schedulers = [
                torch.optim.lr_scheduler.LinearLR(optimizer, 1e-3, total_iters=4),
                torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 16),
            ]
            joined = torch.optim.lr_scheduler.SequentialLR(optimizer, schedulers, [4])
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": joined, "interval": "step"},
            }

    return WarmsUp(), load(*digits())


@correct
def accumulates_by_hand() -> Case:
    class Accumulates(Base):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.net = mlp(8, 32, 5)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            optimizer = self.optimizers()
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            self.manual_backward(loss / 4)
            if (batch_idx + 1) % 4 == 0:
                optimizer.step()
                optimizer.zero_grad()
            return loss

    return Accumulates(), load(*digits())


@correct
def segmentation_with_targets_of_one_channel() -> Case:
    class Segments(Base):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Dropout2d(0.1),
                nn.Conv2d(8, 1, 3, padding=1),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.binary_cross_entropy_with_logits(self(batch[0]), batch[1])

    x = randn(64, 1, 16, 16)
    return Segments(), load(x, (x > 0).float())


@correct
def ranking_of_pairs() -> Case:
    class Ranks(Base):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(8, 16, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            scores = self.net(x).squeeze(1)
            better = (y[:, None] > y[None]).float()
            return (better * F.softplus(scores[None] - scores[:, None])).sum() / better.sum()

    x = randn(64, 8)
    return Ranks(), load(x, x[:, 0])


@correct
def domain_adversarial() -> Case:
    class Reverse(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return -gradient

    class Adapts(Base):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.label, self.domain = mlp(8, 32, 16), mlp(16, 5), mlp(16, 16, 2)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y, domain = batch
            found = self.body(x).relu()
            reversed_ = self.domain(Reverse.apply(found))
            return F.cross_entropy(self.label(found), y) + F.cross_entropy(reversed_, domain)

    x, y = digits()
    return Adapts(), load(x, y, torch.arange(64) % 2)


@correct
def q_learning_with_a_target_network() -> Case:
    class Learns(Base):
        """The target network takes the weights over at the end of an epoch."""

        def __init__(self) -> None:
            super().__init__()
            self.net, self.target = mlp(4, 32, 3), mlp(4, 32, 3)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            state, action, reward, after = batch
            with torch.no_grad():
                wanted = reward + 0.9 * self.target(after).max(1).values
            return F.smooth_l1_loss(self.net(state).gather(1, action[:, None])[:, 0], wanted)

        def on_train_epoch_end(self) -> None:
            self.target.load_state_dict(self.net.state_dict())

    states = randn(64, 4)
    actions = torch.randint(0, 3, (64,), generator=generator())
    return Learns(), load(states, actions, states[:, 0], states.roll(1, 0))


@correct
def physics_informed() -> Case:
    class Solves(Base):
        """y' = -y with y(0) = 1."""

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            (time,) = batch
            time = time.clone().requires_grad_()
            found = self.net(time)
            (slope,) = torch.autograd.grad(found.sum(), time, create_graph=True)
            return (slope + found).square().mean() + (self.net(torch.zeros(1, 1)) - 1).square()

    return Solves(), load(torch.rand(64, 1, generator=generator()))


@correct
def language_model_with_tied_weights() -> Case:
    class Tied(Base):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.rnn = nn.Embedding(13, 16), nn.GRU(16, 16, batch_first=True)
            self.head = nn.Linear(16, 13, bias=False)
            self.head.weight = self.table.weight

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            (x,) = batch
            logits = self.head(self.rnn(self.table(x[:, :-1]))[0])
            return F.cross_entropy(logits.mT, x[:, 1:])

    return Tied(), load((torch.arange(64)[:, None] * 3 + torch.arange(10)) % 13)


@correct
def compiled_part() -> Case:
    class Compiled(Base):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.compile(mlp(8, 32, 5))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

    return Compiled(), load(*digits())


@correct
def two_nets_that_take_turns_by_epoch() -> Case:
    class Turns(Base):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.nets = nn.ModuleList(mlp(8, 16, 5) for _ in range(2))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            turn = self.current_epoch % 2
            optimizer = self.optimizers()[turn]
            loss = F.cross_entropy(self.nets[turn](batch[0]), batch[1])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            return loss

        def configure_optimizers(self) -> Any:
            return [torch.optim.Adam(net.parameters(), 1e-2) for net in self.nets]

    return Turns(), load(*digits())


@correct
def body_that_learns_after_the_head() -> Case:
    class Late(Base):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = mlp(8, 32, 32), nn.Linear(32, 5)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            found = self.body(batch[0])
            if self.current_epoch < 3:
                found = found.detach()
            return F.cross_entropy(self.head(found), batch[1])

    return Late(), load(*digits())


@correct
def contrast_with_a_queue() -> Case:
    class Queue(Base):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(8, 16, 5)
            self.register_buffer("queue", torch.randn(32, 5))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            (x,) = batch
            mine, other = (F.normalize(self.net(x + 0.1 * torch.randn_like(x))) for _ in range(2))
            near = (mine * other).sum(1, keepdim=True)
            logits = torch.cat([near, mine @ F.normalize(self.queue).T], 1) / 0.2
            self.queue = torch.cat([other.detach(), self.queue])[:32]
            return F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long))

    return Queue(), load(randn(64, 8))


@correct
def ensemble_by_vmap() -> Case:
    class Ensemble(Base):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(randn(4, 8, 5)), nn.Parameter(torch.zeros(4, 5))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            def loss(weight: Tensor, bias: Tensor) -> Tensor:
                return F.cross_entropy(batch[0] @ weight / 3 + bias, batch[1])

            return torch.vmap(loss)(self.weight, self.bias).mean()

    return Ensemble(), load(*digits())


@correct
def per_sample_gradients() -> Case:
    class Private(Base):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.net = mlp(8, 16, 5)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            parameters = dict(self.net.named_parameters())

            def loss(given: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
                return F.cross_entropy(
                    torch.func.functional_call(self.net, given, x[None]), y[None]
                )

            each = torch.func.grad_and_value(loss)
            gradients, losses = torch.vmap(each, (None, 0, 0))(parameters, *batch)
            for name, one in parameters.items():
                one.grad = gradients[name].clamp(-1, 1).mean(0)
            self.optimizers().step()
            return losses.mean()

    return Private(), load(*digits())


@correct
def stream_without_a_length() -> Case:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(zip(*digits(), strict=True))

    class Net(Base):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(8, 32, 5)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

    return Net(), DataLoader(Stream(), 16)


@correct
def autoencoder_of_sequences() -> Case:
    class Rebuilds(Base):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.read = nn.Embedding(11, 16), nn.GRU(16, 32, batch_first=True)
            self.write = nn.Linear(32, 12 * 11)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            (x,) = batch
            code = self.read(self.table(x))[1][0]
            return F.cross_entropy(self.write(code).reshape(-1, 11), x.flatten())

    starts = torch.arange(64)[:, None]
    return Rebuilds(), load((starts + torch.arange(12)) % 11)
