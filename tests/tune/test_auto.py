"""What is proposed for an argument, and the sweep file that is written of it."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import yaml

from raylit.callbacks.finders.learning_rate_finder import LRFinderResult
from raylit.tune import SweepSpec
from raylit.tune.auto import Line, Proposal, hand_written, lr_range, propose_argument
from raylit.tune.space import numbers_of


@pytest.mark.parametrize(
    ("name", "wanted", "value", "tried"),
    [
        ("width", int, 32, {"choice": [16, 32, 64]}),
        ("hidden_dim", int | None, 8, {"choice": [4, 8, 16]}),
        ("num_layers", int, 2, None),
        ("layers", int, 2, {"choice": [1, 2, 3]}),
        ("depth", int, 1, {"choice": [1, 2]}),
        ("dropout", float, 0.1, {"uniform": [0.0, 0.5]}),
        ("dropout", float, 0.8, None),
        ("weight_decay", float, 0.05, {"choice": [0.0, 1e-4, 1e-3, 1e-2, 0.05]}),
        ("norm", Literal["batch", "layer"], "layer", {"choice": ["batch", "layer"]}),
        ("act", Literal["relu", "gelu"] | None, None, {"choice": ["relu", "gelu", None]}),
        ("bias", bool, True, {"choice": [True, False]}),
        ("num_classes", int, 10, None),
        ("in_features", int, 10, None),
        ("seed", int, 10, None),
        ("path", str, "here", None),
        ("width", Any, 32, None),
        ("sizes", dict[str, int], {"a": 1}, None),
    ],
)
def test_an_argument_is_judged_by_name_type_and_value(
    name: str, wanted: Any, value: Any, tried: Any
) -> None:
    made = propose_argument(name, wanted, value)
    assert (None if isinstance(made, str) else made[0]) == tried
    assert (made if isinstance(made, str) else made[1]).strip(), "there is a reason"


def test_the_range_of_learning_rates_is_where_the_loss_falls() -> None:
    curve = LRFinderResult("exponential", 1e-6, 1, 60)
    lrs = [1e-6 * 10 ** (step / 10) for step in range(60)]
    # has fallen by a tenth at 3e-3, is least at 1e-1, and rises from there
    losses = [1 / (1 + (lr / 1e-2) ** 2) + max(0.0, lr - 0.1) for lr in lrs]
    curve.results = {"lr": lrs, "loss": losses}
    low, high, why = lr_range(curve, 0.003)
    assert 2e-3 < low <= 3e-3 and 0.05 < high < 0.3, why
    low, high, _ = lr_range(curve, 0.5)
    assert high == 0.5, "the hand-written value lies within, as it is tried first"
    assert lr_range(curve, 0.5123)[1] == 0.5123 and lr_range(curve, 1.27e-6)[0] == 1.27e-6
    assert lr_range(None, 0.01)[:2] == (0.001, 0.1)


def test_the_file_is_a_sweep_with_a_reason_on_each_line() -> None:
    proposal = Proposal(
        [
            Line("name", "auto", "a name"),
            Line("metric", {"name": "val/acc", "mode": "max"}, "is watched"),
            Line("stop", {"time_budget": "10m"}, "by default"),
            Line("points", [{"model.lr": 1e-5, "trainer.gradient_clip_val": None}], "as before"),
        ],
        [
            Line("model.lr", {"loguniform": [1e-5, 0.1]}, "finder: it falls at 0.001"),
            Line("trainer.gradient_clip_val", {"choice": [None, 1.0]}, "none or 1"),
        ],
    )
    for number in range(20):
        proposal.leave(f"data.some_argument_{number}", "nothing known: of it")
    text = proposal.text("first\nsecond")
    spec = SweepSpec.from_dict(numbers_of(yaml.safe_load(text)))
    assert spec.metrics == {"val/acc": "max"} and spec.points == [
        {"model.lr": 1e-5, "trainer.gradient_clip_val": None}
    ]
    assert set(spec.space) == {"model.lr", "trainer.gradient_clip_val"}
    body = [line for line in text.splitlines() if not line.startswith("#") and line != "space:"]
    assert all("  # " in line for line in body), text


def test_the_values_of_the_config_are_tried_first_also_those_it_leaves_out() -> None:
    clip = Line("trainer.gradient_clip_val", {"choice": [None, 1.0]}, "none or 1")
    found = Proposal([], [clip])
    assert hand_written(found, {"trainer": {"max_epochs": 3}}) == {clip.key: None}
    assert hand_written(found, {"trainer": {"gradient_clip_val": 1.0}}) == {clip.key: 1.0}


def test_a_value_of_the_config_outside_of_the_space_is_no_point() -> None:
    lr = Line("trainer.gradient_clip_val", {"loguniform": [0.1, 1.0]}, "a range, but None in it")
    depth = Line("trainer.max_epochs", {"choice": [2, 3]}, "and 3 in it")
    found = Proposal([], [lr, depth])
    assert hand_written(found, {"trainer": {"max_epochs": 3}}) == {depth.key: 3}
