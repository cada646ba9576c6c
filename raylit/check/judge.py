"""Judgement of the notes that `probe.py` took: one finding for each check.

A problem is certainly a mistake. A question asks about something that is a mistake in most models
and meant in some.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from raylit.check.probe import FirstStep, Notes, OneBatch, SeveralBatches, has_fallen, still_falls
from raylit.check.report import Finding, Status, duration, listed
from raylit.runtime.aliases import PlainDict

ADAM_LR = 3e-3
LEAST_STEPS = 5  # of optimizers, to tell how gradients are cleared
HARDLY = 1e-3  # as a part of the first loss
HIGH = 3.0  # times the loss of chance; before training, predictions vary too
NO_STEP = 1e-3  # a learning rate of this share of its peak trains nothing any more


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The facts that the judgement needs of the module, which is gone by then.

    Attributes:
        wanted: names of the parameters that require a gradient.
        is_automatic: whether raylit steps its optimizers.
        allows_unused: whether the strategy reckons with parameters without a gradient.
    """

    wanted: list[str]
    is_automatic: bool
    allows_unused: bool


def of_steps(first: FirstStep) -> Finding:
    """Return a finding that names the stages that ran."""
    ran = list(dict.fromkeys(first.stages))
    return Finding(
        "steps",
        "ok",
        f"{' and '.join(ran)} ran with one batch, and the optimizers",
        values={"steps": ran},
    )


def of_detached_loss() -> Finding:
    """Say that the loss has no gradient, with which nothing else can be checked."""
    return Finding(
        "gradients",
        "problem",
        "no parameter gets one: the loss that training_step returns depends on none of them",
        "look for a detach(), item() or torch.no_grad() on the way from the parameters to the loss,"
        " or for a model that is frozen as a whole",
    )


def of_inputs(counts: Mapping[str, bool]) -> list[Finding]:
    """Return a finding about the inputs that the loss depends on, if there is anything to say."""
    ignored = [name for name, counts_here in counts.items() if not counts_here]
    if not ignored and len(counts) < 2:
        return []
    if not ignored:
        return [Finding("inputs", "ok", f"the loss depends on {listed(map(_input, counts))}")]
    return [
        Finding(
            "inputs",
            "warning" if len(counts) > len(ignored) else "question",
            f"the loss does not depend on {listed(map(_input, ignored))}: no gradient comes of it",
            "is its encoder used, or is there a detach(), no_grad, a division of whole numbers or a"
            " mask that is 0 on the way?",
            {"ignored": ignored},
        )
    ]


def _input(name: str) -> str:
    return f"part {name} of the batch" if name.isdigit() else name


def of_gradients(
    model: ModelFacts, first: FirstStep, several: SeveralBatches, one: OneBatch
) -> Finding:
    """Judge which parameters learn."""
    seen: list[dict[str, bool]] = [first.notes.gradients, several.notes.gradients, one.gradients]
    changed = several.changed | one.changed
    trained = first.notes.trained | several.notes.trained
    used = first.notes.used | several.notes.used
    missing = [name for name in model.wanted if not any(name in notes for notes in seen)]
    # what changes without a gradient, the module's own code writes, such as a teacher's weights;
    # what is in no optimizer either is a frozen part that is used
    frozen = [name for name in first.without_optimizer if name in used]
    missing = [name for name in missing if name not in changed and name not in frozen]
    cut_off = [name for name in missing if name in trained]
    forgotten = [
        name for name in missing if name not in used and name not in first.without_optimizer
    ]
    cut_off = [name for name in cut_off if name not in first.without_optimizer]
    is_certain = several.looked_ahead and bool(
        (cut_off and model.is_automatic) or (forgotten and several.has_all)
    )
    zero = [
        name
        for name in model.wanted
        if any(name in notes for notes in seen) and not any(notes.get(name) for notes in seen)
    ]
    values = {"without_gradient": missing, "zero_gradient": zero}
    if missing:
        looked = "all batches of an epoch" if several.has_all else f"{several.num_batches} batches"
        advice = (
            "use them for the loss (is there a detach(), .data, argmax or no_grad on the way?),"
            " remove them, or requires_grad_(False)"
        )
        status: Status = "problem" if is_certain else "question"
        return Finding(
            "gradients",
            "warning" if model.allows_unused else status,
            f"no gradient reaches {listed(missing)} in {looked}",
            advice if is_certain else f"if they are for other batches, nothing; else {advice}",
            values,
        )
    if first.notes.strangers:
        shapes = listed(map(str, first.notes.strangers))
        return Finding(
            "gradients",
            "question",
            f"parameters of shape {shapes} are used that the module does not have, so that no"
            " optimizer can get them from self.parameters()",
            "layers in a plain list or dict? Use nn.ModuleList, ModuleDict or ParameterList",
            values,
        )
    if zero:
        advice = (
            "look for dead units (a ReLU that is never positive), a factor of 0 and losses that do"
            " not depend on them"
        )
        return Finding(
            "gradients",
            "warning",
            f"the gradient of {listed(zero)} is 0 in all steps",
            advice,
            values,
        )
    return Finding(
        "gradients", "ok", f"all of {len(model.wanted)} parameters get one", values=values
    )


def of_optimizers(
    first: FirstStep,
    several: SeveralBatches,
    one: OneBatch,
    model: ModelFacts,
    odd_schedule: str | None,
) -> Finding:
    """Judge the parameters and steps of optimizers; `odd_schedule` describes an odd scheduler."""
    seen = (first.notes.gradients, several.notes.gradients, one.gradients)
    left_out = [
        name
        for name in first.without_optimizer
        if any(notes.get(name) for notes in seen) and name not in one.changed | several.changed
    ]
    values = {"left_out": left_out}
    if left_out:
        return Finding(
            "optimizers",
            "problem",
            f"{listed(left_out)} in no optimizer",
            "hand them to the optimizer in configure_optimizers, or freeze them:"
            " requires_grad_(False)",
            values,
        )
    uncleared = one.uncleared
    if uncleared is not None and uncleared.num_uncleared >= LEAST_STEPS:
        return Finding(
            "optimizers",
            "problem",
            f"gradients are not cleared: {uncleared.num_uncleared} of {uncleared.num_steps} steps"
            " had those of the steps before in theirs",
            "call optimizer.zero_grad() before each backward",
            values,
        )
    if model.wanted and not one.changed and one.uncleared is not None:
        steps = one.uncleared.num_steps
        has_gradient = any(one.gradients.values())
        if has_gradient and (steps or model.is_automatic):
            return Finding(
                "optimizers",
                "problem",
                "no parameter changes, though gradients arrive",
                "is the learning rate 0, or are gradients cleared between backward and step?",
                values,
            )
        if has_gradient:
            return Finding(
                "optimizers",
                "question",
                f"no optimizer has stepped in {len(one.losses) or 'all'} batches",
                "in manual optimization, training_step calls optimizer.step()",
                values,
            )
    if odd_schedule is not None:
        return Finding(
            "optimizers",
            "question",
            odd_schedule,
            "interval is 'step' or 'epoch': is the scheduler made for the other, or for fewer?",
            values,
        )
    if first.resting:
        return Finding(
            "optimizers",
            "question",
            f"{listed(first.resting)} in eval mode in training_step: nothing is dropped, and no"
            " statistics are learned",
            "is there an eval() without a train()? Pretrained models come in eval mode",
            values,
        )
    return Finding(
        "optimizers", "ok", "hold all parameters that learn, and change them", values=values
    )


def of_finite(first: FirstStep, several: SeveralBatches) -> Finding:
    """Judge where NaN or infinity came up."""
    places = [
        f"{what} {where or 'the module'}" if what.endswith("of") or where else what
        for what, where in first.not_finite
    ]
    values = {"places": places, "batches": several.not_finite}
    advice = (
        "look at the first place: a log, sqrt or division at 0, an exp that overflows, missing"
        " values in the data"
    )
    if any(what in ("the loss", "the weights") for what, _ in first.not_finite):
        return Finding(
            "finite", "problem", f"NaN or infinity first in {listed(places)}", advice, values
        )
    if several.not_finite:
        numbers = listed(map(str, several.not_finite))
        return Finding(
            "finite", "problem", f"the loss of batch {numbers} is NaN or infinite", advice, values
        )
    if places:
        return Finding(
            "finite",
            "ok",
            f"NaN or infinity in {listed(places)}, as of a mask; loss and weights are finite",
            values=values,
        )
    return Finding(
        "finite",
        "ok",
        "no NaN or infinity in batch, outputs, loss, gradients and weights",
        values=values,
    )


def of_samples(first: FirstStep) -> Finding:
    """Judge whether samples influence each other."""
    told = {name or "the module": (mixes, text) for name, (mixes, text) in first.mixing.items()}
    values = {"mixing": {name: mixes for name, (mixes, _) in told.items()}}
    mixing = [f"{name} ({text})" for name, (mixes, text) in told.items() if mixes]
    if mixing:
        # each prediction has a target of its own, and the loader draws samples on their own
        is_certain = not first.batches_itself and any(
            call.compares_samples for call in first.notes.losses
        )
        return Finding(
            "samples",
            "problem" if is_certain else "question",
            f"in eval mode samples influence each other in {listed(mixing)}",
            "look for view, reshape, transpose or a softmax over the wrong dimension, and sums over"
            " dimension 0",
            values,
        )
    if first.notes.random:
        return Finding(
            "samples",
            "question",
            f"{listed(dict.fromkeys(first.notes.random))} is in train mode where the module is in"
            " eval mode",
            "pass training=self.training; if that is meant, as for samples of a posterior, nothing",
            values,
        )
    independent = [name for name, (mixes, _) in told.items() if mixes is False]
    if independent:
        text = f"do not influence each other in {listed(independent)}"
        if "the module" in told or len(independent) == 1:
            return Finding("samples", "ok", text, values=values)
        text += "; what training_step makes of these was not looked at, as forward would be"
        return Finding("samples", "unknown", text, values=values)
    reason = next(
        (f": {name}: {text}" for name, (_, text) in told.items()), ": training_step calls no module"
    )
    return Finding(
        "samples",
        "unknown",
        f"whether they influence each other could not be told{reason}",
        values=values,
    )


def of_loss(loss: float | None, notes: Notes, later: Notes) -> Finding:
    """Judge how loss functions are called.

    Args:
        loss: what `training_step` returned first.
        notes: of the first step.
        later: of the last steps.
    """
    calls = notes.losses
    values: dict[str, object] = {
        "loss": loss,
        "functions": [(call.function, call.value, call.expected) for call in calls],
    }
    mistaken = next((call for call in [*calls, *notes.validation_losses] if call.mistake), None)
    if mistaken is not None:
        return Finding("loss", "problem", str(mistaken.mistake), mistaken.fix, values)
    asked = _question(loss, notes, later)
    if asked is not None:
        return Finding("loss", "question", *asked, values)
    told = [call for call in calls if call.value is not None and call.expected is not None]
    if loss is None and not told:
        return Finding(
            "loss",
            "unknown",
            "training_step returns none, so what it is at first could not be told",
            values=values,
        )
    if not told:
        return Finding(
            "loss", "ok", f"{loss:.4g} at first; what it should be could not be told", values=values
        )
    texts = [
        f"{call.function} is {call.value:.4g} at first; a model that knows nothing has"
        f" {call.expected:.4g} ({call.why})"
        for call in told
    ]
    high = [
        call
        for call in told
        if not float(call.value or 0) <= HIGH * float(call.expected or 0) + 0.1
    ]
    if high:
        advice = (
            "scale inputs and targets to mean 0 and variance 1, make the weights of the last layer"
            " smaller, set its bias to the mean target"
        )
        return Finding("loss", "warning", "; ".join(texts), advice, values)
    return Finding("loss", "ok", "; ".join(texts), values=values)


def _question(loss: float | None, notes: Notes, later: Notes) -> tuple[str, str] | None:
    """Return a lasting oddity in the arguments of losses and its remedy; None if there is none."""
    for call in notes.losses:
        same = [one for one in later.losses if one.function == call.function]
        if call.suspicion and same and all(one.suspicion for one in same):
            return f"{call.suspicion}; after some steps as well", call.fix
    total = sum(call.value or 0.0 for call in notes.losses)
    if total and loss is not None and math.isclose(loss, -total, rel_tol=1e-4):
        names = listed(dict.fromkeys(call.function for call in notes.losses))
        return (
            f"the loss is minus {names}: training makes it worse",
            "leave the minus out, or maximize on purpose",
        )
    if notes.truncated:
        return (
            f"training_step makes whole numbers of {listed(notes.truncated)}, whose fractions are"
            " lost",
            "keep floating-point numbers, or round on purpose",
        )
    if notes.differences:
        one, other = notes.differences[0]
        return (
            f"the difference of shapes {one} and {other} is one of every prediction with several"
            " targets",
            "give both the same shape, for instance with squeeze(1) or unsqueeze(1)",
        )
    return None


def of_one_batch(own: OneBatch, with_adam: OneBatch | None, is_automatic: bool) -> Finding:
    """Judge whether the loss on one batch falls."""
    values = {"losses": own.losses, "losses_with_adam": with_adam.losses if with_adam else None}
    if not own.losses:
        return Finding(
            "one batch",
            "unknown",
            "training_step returns no loss, so whether it falls could not be told",
            values=values,
        )
    first, last = own.losses[0], own.losses[-1]
    text = f"loss {first:.4g} to {last:.4g} in {len(own.losses)} steps on one batch"
    if not math.isfinite(last):
        return _diverged(own, with_adam, text, values)
    if has_fallen(own.losses) or not is_automatic:  # an adversary's loss need not fall
        return Finding("one batch", "ok", text, values=values)
    if still_falls(own.losses):
        return Finding("one batch", "ok", f"{text}, and still falls", values=values)
    other = with_adam.losses[-1] if with_adam is not None else math.inf
    if with_adam is not None:
        text += f"; with Adam(lr={ADAM_LR}) to {other:.4g}"
    is_finite = math.isfinite(other)
    if is_finite and other < first and not last <= max(2 * other, other + 0.1 * abs(first)):
        has_risen = not sum(own.after) <= sum(own.before)  # with the same random numbers
        which = "lower" if has_risen else "raise"
        advice = f"{which} the learning rate, or take Adam(lr={ADAM_LR})"
        return Finding("one batch", "warning", text, advice, values)
    learns = _learns(own) or (with_adam is not None and _learns(with_adam))
    least = min(last, other) if is_finite else last
    if learns and first > 0 and least > (1 - HARDLY) * first:
        advice = "scale inputs and targets to mean 0 and variance 1, or raise the learning rate"
        return Finding("one batch", "warning", f"{text}: it hardly falls", advice, values)
    if learns:
        # some losses cannot come near 0: of noise, of pairs, of a distribution
        return Finding("one batch", "ok", text, values=values)
    advice = (
        "the model does not learn: look at the sign of the loss, at the targets and at what"
        " detaches the loss from the model"
    )
    stays = own.before == own.after and (with_adam is None or with_adam.before == with_adam.after)
    return Finding("one batch", "problem" if stays else "question", text, advice, values)


def _diverged(own: OneBatch, with_adam: OneBatch | None, text: str, values: PlainDict) -> Finding:
    advice = "look at the check `finite`"
    if with_adam is not None and math.isfinite(with_adam.losses[-1]):
        text += f"; with Adam(lr={ADAM_LR}) to {with_adam.losses[-1]:.4g}"
        advice = "lower the learning rate, or take Adam"
    return Finding("one batch", "problem", text, advice, values)


def _learns(one: OneBatch) -> bool:
    """Tell whether the steps lowered the loss.

    With the same random numbers, for every seed; or, of a model that keeps a state which the loss
    depends on, such as a queue, by more than it goes up and down.
    """
    pairs = list(zip(one.before, one.after, strict=False))
    if pairs and all(after < before for before, after in pairs):
        return True
    first, last = (sum(part) / len(part) for part in (one.losses[:10], one.losses[-10:]))
    return last < first - 0.05 * abs(first)


def of_time(step_s: float | None, batches: float, read_s: float, has_workers: bool) -> Finding:
    """Judge how long an epoch takes."""
    values = {"step_s": step_s, "read_s": read_s, "batches": batches, "epoch_s": None}
    if step_s is None:
        return Finding("time", "unknown", "the steps were too slow to be timed", values=values)
    batch_s = max(step_s, read_s) if has_workers else step_s + read_s
    text = f"{duration(step_s)} for a step, {duration(read_s)} to read a batch"
    if batches != float("inf"):
        values["epoch_s"] = batch_s * batches
        text = f"about {duration(batch_s * batches)} per epoch of {int(batches)} batches: {text}"
    else:
        text += "; how many an epoch has is not known"
    if read_s > step_s and read_s > 1e-3:
        more = "more workers" if has_workers else "DataLoader(num_workers=...)"
        return Finding(
            "time",
            "warning",
            text,
            f"reading takes longer than training: {more}, or less work per sample",
            values,
        )
    return Finding("time", "ok", text, values=values)


def of_memory(several: SeveralBatches, is_gpu: bool) -> Finding:
    """Return a finding about the memory that training and validation need."""
    peak = max(several.train_bytes or 0, several.val_bytes or 0)
    values = {
        "peak_bytes": peak,
        "train_bytes": several.train_bytes,
        "val_bytes": several.val_bytes,
    }
    parts = [f"a training step {(several.train_bytes or 0) / 2**20:,.1f} MiB"]
    if several.val_bytes is not None:
        parts.append(f"a batch of validation {several.val_bytes / 2**20:,.1f} MiB")
    where = "on the GPU" if is_gpu else "of tensors"
    return Finding("memory", "ok", f"{', '.join(parts)} {where} at most", values=values)
