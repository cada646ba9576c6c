"""Small models that are broken in one way each, and the check that has to find it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from .correct import Base, Case, causal_transformer, digits, load, randn

# By name: what makes the model, and the check whose finding is more than ok; `error` if the step
# itself has to fail, as a fit's would.
BROKEN: dict[str, tuple[Callable[[], Case], str]] = {}


def broken(check: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    def note(make: Callable[[], Case]) -> Callable[[], Case]:
        BROKEN[make.__name__] = make, check
        return make

    return note


class Net(Base):
    """Nothing is wrong with it yet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1])


class Regression(Net):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(32, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.mse_loss(self(batch[0]).squeeze(1), batch[1])


def numbers() -> Any:
    x = randn(64, 8)
    return load(x, x[:, 0] + x[:, 1])


@broken("gradients")
def detached_loss() -> Case:
    class Detached(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch[0]).detach(), batch[1])

    return Detached(), load(*digits())


@broken("gradients")
def detached_layer() -> Case:
    class Detached(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).relu().detach())

    return Detached(), load(*digits())


@broken("gradients")
def layer_under_no_grad() -> Case:
    class Ungraded(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.first(x).relu()
            return self.last(x)

    return Ungraded(), load(*digits())


@broken("gradients")
def unused_layer() -> Case:
    class Unused(Net):
        def __init__(self) -> None:
            super().__init__()
            self.middle = nn.Linear(32, 32)

    return Unused(), load(*digits())


@broken("gradients")
def second_task_without_a_loss() -> Case:
    class Tasks(Net):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(32, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            found = self.first(batch[0]).relu()
            self.other(found)
            return F.cross_entropy(self.last(found), batch[1])

    return Tasks(), load(*digits())


@broken("gradients")
def layers_in_a_plain_list() -> Case:
    class Listed(Net):
        def __init__(self) -> None:
            super().__init__()
            self.middle = [nn.Linear(32, 32) for _ in range(2)]

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).relu()
            for layer in self.middle:
                x = layer(x).relu()
            return self.last(x)

    return Listed(), load(*digits())


@broken("gradients")
def dead_units() -> Case:
    class Dead(Net):
        def __init__(self) -> None:
            super().__init__()
            nn.init.constant_(self.first.bias, -100.0)

    return Dead(), load(*digits())


@broken("optimizers")
def gradients_never_cleared() -> Case:
    class Keeps(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.manual_backward(loss)
            self.optimizers().step()
            return loss

    return Keeps(), load(*digits())


@broken("optimizers")
def step_forgotten() -> Case:
    class Forgets(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.optimizers().zero_grad()
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.manual_backward(loss)
            return loss

    return Forgets(), load(*digits())


@broken("optimizers")
def layer_not_in_the_optimizer() -> Case:
    class Forgets(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.last.parameters(), 1e-2)

    return Forgets(), load(*digits())


@broken("optimizers")
def learning_rate_0() -> Case:
    class Stands(Net):
        lr = 0.0

    return Stands(), load(*digits())


@broken("optimizers")
def scheduler_that_goes_to_0() -> Case:
    class Dies(Net):
        """Its epochs are steps."""

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), 1e-2)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
            }

    return Dies(), load(*digits())


@broken("optimizers")
def dropout_in_eval_mode() -> Case:
    class Resting(Net):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.dropout(self.first(x).relu()))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.eval()
            return super().training_step(batch, batch_idx)

    return Resting(), load(*digits())


@broken("gradients")
def all_frozen() -> Case:
    class Frozen(Net):
        def __init__(self) -> None:
            super().__init__()
            self.requires_grad_(False)

    return Frozen(), load(*digits())


@broken("one batch")
def learning_rate_far_too_high() -> Case:
    class Jumps(Regression):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 1e3)

    return Jumps(), numbers()


@broken("one batch")
def learning_rate_far_too_low() -> Case:
    class Creeps(Net):
        lr = 1e-8

    return Creeps(), load(*digits())


@broken("loss")
def softmax_before_cross_entropy() -> Case:
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).softmax(1)

    return Twice(), load(*digits())


@broken("loss")
def sigmoid_before_the_loss_with_logits() -> Case:
    class Twice(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            found = self(batch[0]).sigmoid().squeeze(1)
            return F.binary_cross_entropy_with_logits(found, (batch[1] > 0).float())

    return Twice(), numbers()


@broken("loss")
def sigmoid_of_chosen_samples() -> Case:
    class Twice(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, y = batch
            known = y > -1
            found = self(x).sigmoid()[known].flatten()
            return F.binary_cross_entropy_with_logits(found, (y[known] > 0).float())

    return Twice(), numbers()


@broken("loss")
def sigmoid_by_hand_before_the_loss_with_logits() -> Case:
    class Twice(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            found = 1 / (1 + (-self(batch[0]).squeeze(1)).exp())
            return F.binary_cross_entropy_with_logits(found, (batch[1] > 0).float())

    return Twice(), numbers()


@broken("loss")
def sigmoid_of_a_sigmoid() -> Case:
    class Twice(Regression):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).sigmoid()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            found = self(batch[0]).squeeze(1).sigmoid()
            return F.binary_cross_entropy(found, (batch[1] > 0).float())

    return Twice(), numbers()


@broken("loss")
def probabilities_for_nll_loss() -> Case:
    class Linear(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.nll_loss(self(batch[0]).softmax(1), batch[1])

    return Linear(), load(*digits())


@broken("loss")
def column_against_row() -> Case:
    class Broadcasts(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.mse_loss(self(batch[0]), batch[1])

    return Broadcasts(), numbers()


@broken("loss")
def column_minus_row() -> Case:
    class Broadcasts(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return (self(batch[0]) - batch[1]).square().mean()

    return Broadcasts(), numbers()


@broken("loss")
def column_minus_row_of_another_type() -> Case:
    class Broadcasts(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return (self(batch[0])[:, :1] - batch[1].double()).abs().mean()

    return Broadcasts(), numbers()


@broken("loss")
def fractions_cut_off() -> Case:
    class Cuts(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1].long())

    x = randn(64, 8)
    return Cuts(), load(x, x[:, 0].abs())


@broken("loss")
def sign_turned() -> Case:
    class Uphill(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return -F.cross_entropy(self(batch[0]), batch[1])

    return Uphill(), load(*digits())


@broken("loss")
def targets_not_scaled() -> Case:
    x = randn(64, 8)
    return Regression(), load(x, 1000 + x[:, 0])


@broken("samples")
def reshape_that_mixes_samples() -> Case:
    class Reshapes(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.t().reshape(x.shape))

    return Reshapes(), load(*digits())


@broken("samples")
def softmax_over_the_batch() -> Case:
    class WrongAxis(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).log_softmax(0)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.nll_loss(self(batch[0]), batch[1])

    return WrongAxis(), load(*digits())


@broken("samples")
def batch_as_a_sequence() -> Case:
    class Recurrent(Regression):
        """The LSTM takes the samples for steps: batch_first is missing."""

        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(8, 32)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x[:, -1]).relu() + self.rnn(x)[0][:, -1])

    x = randn(64, 6, 8)
    return Recurrent(), load(x, x[:, :, 0].mean(1))


@broken("samples")
def dropout_that_is_always_on() -> Case:
    class Drops(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(F.dropout(self.first(x).relu(), 0.2))

    return Drops(), load(*digits())


@broken("samples")
def batch_norm_by_the_batch_in_validation() -> Case:
    class Leaks(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(32))
            self.register_buffer("variance", torch.ones(32))

        def forward(self, x: Tensor) -> Tensor:
            x = F.batch_norm(self.first(x), self.mean, self.variance, training=True)
            return self.last(x.relu())

    return Leaks(), load(*digits())


@broken("finite")
def missing_values_in_the_data() -> Case:
    x, y = digits()
    x = x.clone()
    x[3, 2] = float("nan")
    return Net(), load(x, y)


@broken("finite")
def missing_values_in_a_later_batch() -> Case:
    x, y = digits()
    x = x.clone()
    x[40, 2] = float("nan")
    return Net(), load(x, y)


@broken("finite")
def log_of_0() -> Case:
    class Logs(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            found = self(batch[0]).relu().log()
            return F.nll_loss(found, batch[1])

    return Logs(), load(*digits())


@broken("error")
def target_out_of_range() -> Case:
    x, y = digits()
    return Net(), load(x, y + 1)


@broken("error")
def written_into_a_leaf() -> Case:
    class Writes(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.first.weight.mul_(0.99)
            return super().training_step(batch, batch_idx)

    return Writes(), load(*digits())


@broken("inputs")
def inputs_divided_as_whole_numbers() -> Case:
    class Divides(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self((batch[0] // 255).float()), batch[1])

    x = (randn(64, 8).abs() * 60).clamp(0, 254).to(torch.uint8)
    return Divides(), load(x, x[:, :5].argmax(1))


@broken("inputs")
def encoder_behind_a_mask_of_zeros() -> Case:
    class Masks(Net):
        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(4, 32)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x, other, y = batch
            found = self.first(x) + self.other(other) * 0.0
            return F.cross_entropy(self.last(found.relu()), y)

    x, y = digits()
    return Masks(), load(x, randn(64, 4, seed=1), y)


@broken("gradients")
def argmax_on_the_way() -> Case:
    class Chooses(Net):
        def __init__(self) -> None:
            super().__init__()
            self.middle, self.table = nn.Linear(32, 7), nn.Embedding(7, 32)

        def forward(self, x: Tensor) -> Tensor:
            chosen = self.middle(self.first(x).relu()).argmax(1)
            return self.last(self.table(chosen))

    return Chooses(), load(*digits())


@broken("gradients")
def unused_layer_with_a_stream() -> Case:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(zip(*digits(), strict=True))

    model, _ = unused_layer()
    return model, DataLoader(Stream(), 16)


@broken("one batch")
def activation_of_a_single_number() -> Case:
    class Chooses(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.mse_loss(self(batch[0]).softmax(1)[:, 0], batch[1])

    return Chooses(), numbers()


@broken("optimizers")
def gradients_cleared_before_the_step() -> Case:
    class Clears(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            optimizer = self.optimizers()
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.manual_backward(loss)
            optimizer.zero_grad()
            optimizer.step()
            return loss

    return Clears(), load(*digits())


@broken("gradients")
def loss_wrapped_anew() -> Case:
    class Wraps(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            value = F.cross_entropy(self(batch[0]), batch[1]).item()
            return torch.tensor(value, requires_grad=True)

    return Wraps(), load(*digits())


@broken("loss")
def language_model_that_copies() -> Case:
    class Copies(type(causal_transformer()[0])):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = batch[0][:, :-1]
            return F.cross_entropy(self(x).flatten(0, 1), x.flatten())

    return Copies(), causal_transformer()[1]


@broken("one batch")
def targets_of_millions() -> Case:
    class Scaled(Regression):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.mse_loss(self(batch[0]).squeeze(1), 1e6 * batch[1])

    return Scaled(), numbers()
