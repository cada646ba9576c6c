"""Settings drawn at random, in combinations that nobody thought of.

The same hooks, metrics, rows, files and weights under both packages.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

import raylit
from tests.lazy import lightning, torchmetrics
from tests.parity.harness import (
    CALLBACK_HOOKS,
    MODULE_HOOKS,
    differences,
    files,
    loader,
    run,
    seen,
    stream,
    traced,
    trainer,
)

EXAMPLES = int(os.environ.get("RAYLIT_RANDOM_EXAMPLES", "25"))


# ---- what is drawn ----


def some(**strategies: Any) -> Any:
    """A dict in which any of the keys may be missing."""
    return st.fixed_dictionaries({}, optional=strategies)


counts = st.integers(1, 3)
log_arguments = some(
    on_step=st.booleans(),
    on_epoch=st.booleans(),
    prog_bar=st.booleans(),
    logger=st.booleans(),
    reduce_fx=st.sampled_from(["mean", "sum", "min", "max"]),
    batch_size=st.integers(1, 5),
    rank_zero_only=st.booleans(),
)
limits = st.one_of(st.integers(0, 6), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
trainer_arguments = some(
    max_epochs=st.integers(1, 4),
    max_steps=st.integers(1, 9),
    min_epochs=counts,
    min_steps=st.integers(1, 6),
    accumulate_grad_batches=counts,
    limit_train_batches=limits,
    limit_val_batches=limits,
    limit_test_batches=limits,
    limit_predict_batches=limits,
    overfit_batches=st.sampled_from([0.0, 1, 2, 0.5]),
    val_check_interval=st.sampled_from([1, 2, 3, 5, 0.3, 0.5, 1.0]),
    check_val_every_n_epoch=st.sampled_from([1, 2, 3, None]),
    num_sanity_val_steps=st.sampled_from([0, 1, 2, -1]),
    log_every_n_steps=st.integers(0, 3),
    gradient_clip_val=st.sampled_from([0.0, 0.05, 1.0]),
    gradient_clip_algorithm=st.sampled_from(["norm", "value"]),
    reload_dataloaders_every_n_epochs=st.integers(0, 2),
    precision=st.sampled_from(["32-true", "bf16-mixed", "64-true", "bf16-true", "16-mixed"]),
    detect_anomaly=st.booleans(),
    inference_mode=st.booleans(),
    fast_dev_run=st.sampled_from([False, False, False, 1, 2]),
    deterministic=st.booleans(),
)
schedulers = st.fixed_dictionaries(
    {"kind": st.sampled_from(["step", "lambda", "one cycle", "plateau", "exponential"])},
    optional={
        "interval": st.sampled_from(["step", "epoch"]),
        "frequency": counts,
        "monitor": st.sampled_from(["train", "val", "val_epoch", "nothing"]),
        "strict": st.booleans(),
        "name": st.just("named"),
    },
)
savers = some(
    monitor=st.sampled_from(["train", "val", "at the end", "val_epoch"]),
    mode=st.sampled_from(["min", "max"]),
    save_top_k=st.integers(-1, 3),
    save_last=st.sampled_from([True, False, "link"]),
    filename=st.sampled_from(
        [
            "{epoch}",
            "{epoch}-{train:.2f}",
            "x-{step}-{val:.3f}",
            "deep/{epoch}/{step}",
            "same",
            "{missing}",
        ]
    ),
    auto_insert_metric_name=st.booleans(),
    every_n_train_steps=st.integers(0, 4),
    every_n_epochs=st.integers(0, 2),
    save_on_train_epoch_end=st.booleans(),
    save_weights_only=st.booleans(),
    enable_version_counter=st.booleans(),
)
stoppers = st.fixed_dictionaries(
    {"monitor": st.sampled_from(["train", "val", "val_epoch", "at the end"])},
    optional={
        "min_delta": st.sampled_from([0.0, 0.05]),
        "patience": st.integers(0, 3),
        "mode": st.sampled_from(["min", "max"]),
        "strict": st.booleans(),
        "stopping_threshold": st.sampled_from([0.5, 1.0, 2.0]),
        "divergence_threshold": st.sampled_from([0.5, 5.0]),
        "check_on_train_epoch_end": st.booleans(),
    },
)
train_data = st.one_of(
    st.fixed_dictionaries(
        {"kind": st.just("loader"), "batches": st.integers(1, 7), "short": st.integers(0, 1)}
    ),
    st.fixed_dictionaries({"kind": st.just("stream"), "batches": st.integers(1, 5)}),
    st.fixed_dictionaries(
        {
            "kind": st.just("combined"),
            "mode": st.sampled_from(["min_size", "max_size_cycle", "max_size"]),
            "lengths": st.lists(st.integers(1, 5), min_size=1, max_size=3),
        }
    ),
)
val_data = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {"kind": st.just("loader"), "batches": st.integers(1, 4), "short": st.integers(0, 1)}
    ),
    st.fixed_dictionaries({"kind": st.just("stream"), "batches": st.integers(1, 3)}),
    st.fixed_dictionaries(
        {
            "kind": st.just("combined"),
            "mode": st.sampled_from(["min_size", "max_size_cycle", "max_size", "sequential"]),
            "lengths": st.lists(st.integers(1, 3), min_size=1, max_size=3),
        }
    ),
)
plans = st.fixed_dictionaries(
    {
        "trainer": trainer_arguments,
        "optimizer": st.sampled_from(["sgd", "adam", "two", "by hand", "lbfgs"]),
        "schedulers": st.lists(schedulers, max_size=2),
        "train_log": log_arguments,
        "val_log": log_arguments,
        "train": train_data,
        "val": val_data,
        "saver": st.none() | savers,
        "stopper": st.none() | stoppers,
        "traced": st.booleans(),
        "metrics": st.booleans(),
        "rates": st.booleans(),
        "ends": st.sampled_from(
            [
                None,
                None,
                None,
                None,
                ("on_train_batch_end", 3),
                ("on_validation_end", 2),
                ("on_train_epoch_end", 1),
            ]
        ),
        "then": st.lists(
            st.sampled_from(["fit", "validate", "test", "predict", "resume"]), max_size=2
        ),
    }
)


def sensible(plan: dict[str, Any]) -> dict[str, Any]:
    """Take out what contradicts itself, and what raylit does otherwise on purpose.

    So most plans are no errors.
    """
    arguments = dict(plan["trainer"])
    if plan["optimizer"] in ("two", "by hand"):
        for name in ("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"):
            arguments.pop(name, None)
    lengthless = [
        data["kind"] == "stream" for data in (plan["train"], plan["val"]) if data is not None
    ]
    if any(lengthless) and isinstance(arguments.get("overfit_batches"), float):
        arguments.pop("overfit_batches")
    for name, value in list(arguments.items()):
        if (
            any(lengthless)
            and name.startswith("limit_")
            and isinstance(value, float)
            and value != 1.0
        ):
            arguments.pop(name)
    if isinstance(arguments.get("val_check_interval"), float) and (
        lengthless[0] or arguments.get("check_val_every_n_epoch", 1) is None
    ):
        arguments["val_check_interval"] = 2
    then = list(plan["then"])
    if plan["ends"] or plan["stopper"] or "max_steps" in arguments or arguments.get("fast_dev_run"):
        # A fit that was cut short may go on otherwise: see test_differences.py
        then = [fn for fn in then if fn != "resume"]
    logs = [dict(plan[log]) for log in LOGS]
    for log, one, other in ((logs[0], "on_step", "on_epoch"), (logs[1], "on_epoch", "on_step")):
        if log.get(one) is False and not log.get(other):
            del log[one]  # else nothing would be logged
    stopper = plan["stopper"] and {
        name: value for name, value in plan["stopper"].items() if name != "divergence_threshold"
    }
    # Which saves a second time in Lightning
    if plan["traced"] and plan["saver"] and plan["saver"].get("save_last") is True:
        plan = {**plan, "saver": {**plan["saver"], "save_last": "link"}}
    # Saves at a step that wait for the metric are lost in Lightning
    if plan["saver"] and plan["saver"].get("monitor", "train") != "train":
        plan = {
            **plan,
            "saver": {
                name: value
                for name, value in plan["saver"].items()
                if name != "every_n_train_steps"
            },
        }
    if arguments.get("fast_dev_run") and plan["saver"]:  # which leaves a last.ckpt in Lightning
        plan = {
            **plan,
            "saver": {name: value for name, value in plan["saver"].items() if name != "save_last"},
        }
    # Of which Lightning's step values are bfloat16
    metrics = plan["metrics"] and arguments.get("precision") != "bf16-true"
    return {
        **plan,
        "trainer": arguments,
        "then": then,
        "metrics": metrics,
        "stopper": stopper,
        **dict(zip(LOGS, logs, strict=True)),
    }


LOGS = ("train_log", "val_log")

# ---- what is made of it ----

HOOKS = [
    hook
    for hook in MODULE_HOOKS
    if not hook.endswith("_dataloader")
    and hook not in ("configure_gradient_clipping", "clip_gradients")
]


def data_of(pl: Any, plan: dict[str, Any] | None, seed: int) -> Any:
    """The loaders of a plan.

    Each with a generator of its own, so that reading one again draws no seed of the process.
    """
    if plan is None:
        return None
    generator = torch.Generator().manual_seed(seed)
    if plan["kind"] == "loader":
        return loader(plan["batches"], short=plan["short"], seed=seed, generator=generator)
    if plan["kind"] == "stream":
        made = stream(plan["batches"], seed=seed)
        made.generator = generator
        return made
    combined = pl.utilities.CombinedLoader
    return combined(
        [
            loader(length, seed=seed + i, generator=generator)
            for i, length in enumerate(plan["lengths"])
        ],
        plan["mode"],
    )


def plan_is_endless(module: Any) -> bool:
    """Tell whether the number of steps cannot be known: then Lightning says -1, raylit infinity."""
    return module.trainer.estimated_stepping_batches in (-1, float("inf"))


def scheduler_of(plan: dict[str, Any], optimizer: Any, module: Any) -> dict[str, Any]:
    lr_scheduler = torch.optim.lr_scheduler
    made = {
        "step": lambda: lr_scheduler.StepLR(optimizer, 2, 0.5),
        "lambda": lambda: lr_scheduler.LambdaLR(optimizer, lambda count: 1 / (1 + count)),
        "exponential": lambda: lr_scheduler.ExponentialLR(optimizer, 0.9),
        "plateau": lambda: lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5),
        "one cycle": lambda: lr_scheduler.OneCycleLR(
            optimizer,
            0.2,
            total_steps=max(
                2, 50 if plan_is_endless(module) else int(module.trainer.estimated_stepping_batches)
            ),
        ),
    }[plan["kind"]]()
    return {"scheduler": made, **{key: value for key, value in plan.items() if key != "kind"}}


# It has a class, whose methods are counted as branches.
def model_of(pl: Any, plan: dict[str, Any]) -> Any:  # noqa: C901
    """The class of a module that does what the plan says."""

    class Random(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.second = torch.nn.Linear(4, 3), torch.nn.Linear(3, 3)
            self.dropout = torch.nn.Dropout(0.25)
            self.error = torchmetrics.MeanSquaredError()
            self.val_errors = torchmetrics.MetricCollection(
                [torchmetrics.MeanSquaredError(), torchmetrics.MeanAbsoluteError()], prefix="val/"
            )
            self.automatic_optimization = plan["optimizer"] not in ("two", "by hand")

        def forward(self, x: Any) -> Any:
            return self.second(self.dropout(self.layer(x)))

        def loss(self, batch: Any) -> Any:
            leaves = [
                leaf
                for leaf in torch.utils._pytree.tree_leaves(batch)
                if isinstance(leaf, torch.Tensor)
            ]
            return sum((self(leaf) - 1).square().mean() for leaf in leaves)

        def first(self, batch: Any) -> Any:
            return next(
                leaf
                for leaf in torch.utils._pytree.tree_leaves(batch)
                if isinstance(leaf, torch.Tensor)
            )

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if not self.automatic_optimization:
                return self.step_by_hand(batch, batch_idx)
            loss = self.loss(batch)
            if plan["optimizer"] != "lbfgs":
                self.log("train", loss, **plan["train_log"])
                if plan["metrics"]:
                    first = self.first(batch)
                    self.error(self(first).float(), first[:, :3].float().contiguous())
                    self.log("error", self.error, on_step=True, on_epoch=True)
            return loss

        def step_by_hand(self, batch: Any, batch_idx: int) -> Any:
            optimizers, schedulers = self.optimizers(), self.lr_schedulers()
            for number, optimizer in enumerate(
                optimizers if isinstance(optimizers, list) else [optimizers]
            ):
                with optimizer.toggle_model():
                    loss = self.loss(batch)
                    self.log(f"loss {number}", loss, **plan["train_log"])
                    optimizer.zero_grad()
                    self.manual_backward(loss)
                    self.clip_gradients(
                        optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm"
                    )
                    if number == 0 or batch_idx % 2 == 0:
                        optimizer.step()
            for scheduler in (
                schedulers if isinstance(schedulers, list) else [schedulers] if schedulers else []
            ):
                scheduler.step(
                    *(
                        [loss.detach()]
                        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
                        else []
                    )
                )
            self.log("train", loss.detach(), **plan["train_log"])
            return {"loss": loss, "more": 1} if batch_idx % 2 else None

        def on_train_epoch_end(self) -> None:
            self.log("at the end", float(self.current_epoch + self.global_step))

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            loss = self.loss(batch)
            self.log("val", loss, **plan["val_log"])
            if plan["metrics"]:
                first = self.first(batch)
                self.val_errors.update(self(first).float(), first[:, :3].float().contiguous())
            return loss

        def on_validation_epoch_end(self) -> None:
            self.log("val_epoch", 1.0 / (1 + self.global_step), prog_bar=True)
            if plan["metrics"]:
                self.log_dict(self.val_errors.compute())
                self.val_errors.reset()

        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            self.log_dict({"test": self.loss(batch), "index": float(batch_idx)}, **plan["val_log"])

        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return self(self.first(batch)), batch_idx, dataloader_idx

        def configure_optimizers(self) -> Any:
            kind = plan["optimizer"]
            if kind == "two":
                optimizers: list[Any] = [
                    torch.optim.SGD(self.layer.parameters(), lr=0.1),
                    torch.optim.Adam(self.second.parameters(), lr=0.01),
                ]
            else:
                make = {"adam": torch.optim.Adam, "lbfgs": torch.optim.LBFGS}.get(
                    kind, torch.optim.SGD
                )
                optimizers = [make(self.parameters(), lr=0.05)]
            return optimizers, [
                scheduler_of(one, optimizers[i % len(optimizers)], self)
                for i, one in enumerate(plan["schedulers"])
            ]

    return Random


def callbacks_of(pl: Any, root: Path, plan: dict[str, Any], trace: list[Any]) -> list[Any]:
    made = []
    if plan["saver"] is not None:
        made.append(pl.callbacks.ModelCheckpoint(root / "saved", **plan["saver"]))
    if plan["stopper"] is not None:
        made.append(pl.callbacks.EarlyStopping(**plan["stopper"]))
    if plan["rates"]:
        made.append(pl.callbacks.LearningRateMonitor())
    if plan["ends"] is not None:
        hook, step = plan["ends"]

        def stop(self: Any, trainer: Any, *args: Any, **kwargs: Any) -> None:
            if trainer.global_step >= step and not trainer.sanity_checking:
                trainer.should_stop = True

        made.append(type("Stops", (pl.Callback,), {hook: stop})())
    if plan["traced"]:
        made.append(
            traced(
                pl.Callback,
                [hook for hook in CALLBACK_HOOKS if "state" not in hook],
                "callback",
                trace,
            )()
        )
    return made


def scenario(pl: Any, root: Path, plan: dict[str, Any]) -> Any:
    trace: list[Any] = []
    cls = model_of(pl, plan)
    found: dict[str, Any] = {}
    model = (traced(cls, HOOKS, "module", trace) if plan["traced"] else cls)()
    saver = plan["saver"]

    def make() -> Any:
        arguments = {"logger": True, "log_every_n_steps": 2, **plan["trainer"]}
        return trainer(pl, root, **arguments, callbacks=callbacks_of(pl, root, plan, trace))

    try:
        one = make()
        one.fit(model, data_of(pl, plan["train"], 0), data_of(pl, plan["val"], 10))
        for number, fn in enumerate(plan["then"]):
            found[f"before {number} {fn}"] = seen(one, model)
            if fn == "fit":
                if one.fit_loop.max_epochs > 0:
                    one.fit_loop.max_epochs += 1
                one.fit(model, data_of(pl, plan["train"], 0), data_of(pl, plan["val"], 10))
            elif fn == "resume":
                one.save_checkpoint(root / "again.ckpt")
                plan["trainer"] = {
                    **plan["trainer"],
                    "max_epochs": plan["trainer"].get("max_epochs", 2) + 1,
                    "num_sanity_val_steps": 0,
                }
                root = root / "again"
                one, model = make(), cls()
                one.fit(
                    model,
                    data_of(pl, plan["train"], 0),
                    data_of(pl, plan["val"], 10),
                    ckpt_path=root.parent / "again.ckpt",
                )
            else:
                found[fn] = getattr(one, fn)(
                    model,
                    data_of(pl, plan["val"] or {"kind": "loader", "batches": 2, "short": 1}, 20),
                )
        found["groups"] = [
            [{k: v for k, v in g.items() if k != "params"} for g in o.param_groups]
            for o in one.optimizers
        ]
        found["end"] = seen(one, model)
        found["batches"] = [one.num_training_batches, [] if plan["then"] else one.num_val_batches]
    except Exception as error:
        if isinstance(error, AssertionError | AttributeError | NotImplementedError):
            raise
        return {"error": True, "_text": f"{type(error).__name__}: {error}"}
    found["files"] = files(root)
    for callback in (
        one.checkpoint_callbacks
        if saver is not None and found["files"] and "one" in locals()
        else []
    ):
        names = [
            "best_model_path",
            "last_model_path",
            "best_k_models",
            "kth_best_model_path",
            "best_model_score",
            "current_score",
        ]
        found["saver"] = {name: getattr(callback, name) for name in names}
    found["trace"] = trace
    return found


@pytest.mark.slow
@hypothesis.settings(
    max_examples=EXAMPLES,
    # The same plans in every run; hypothesis.seed(...) above this test gives others
    derandomize=True,
    phases=[hypothesis.Phase.generate],
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(plans.map(sensible))
def test_random_settings(plan: dict[str, Any]) -> None:
    with TemporaryDirectory() as folder:
        both = [
            run(scenario, pl, Path(folder), plan=dict(plan)) for pl in (lightning.pytorch, raylit)
        ]
    texts = [one.pop("_text", "") for one in both]
    if both[0] != both[1]:
        pytest.fail("\n".join([*differences(*both)][:40] + texts), pytrace=False)
