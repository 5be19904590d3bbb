"""Segmentation loss: cross entropy, focal, Dice and generalised Dice with partial labels.

Tensors: logits (B, K, Z, Y, X) with K = 1 + C classes (0 = background), label (B, Z, Y, X),
annotated (B, C). Everything is computed from one log-softmax and a few sums per case and class; no
one-hot map is made. The numbers in brackets are the equations of the paper, section 4.1.1. See
`segmentation_loss` for the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from core.errors import UserError
from core.plan.schema import LOSS_TERMS, Loss

SMOOTH = 1e-5  # of the Dice term, as in MONAI's DiceLoss


@dataclass(frozen=True)
class LossTerms:
    """Scalars: `total` is what is minimised, the others are its terms before weighting."""

    total: torch.Tensor
    ce: torch.Tensor
    focal: torch.Tensor
    dice: torch.Tensor
    gdice: torch.Tensor


@dataclass(frozen=True)
class LossWeights:
    """What weighs more than the plan says; None (or no name) stands for 1.

    Attributes:
        classes: (1+C), of background and each organ in cross entropy and focal, as from
            `class_weights`.
        organs: (C), of each organ in every term; none is negative.
        terms: factor on the plan's weight of a loss term, by its name.
    """

    classes: Sequence[float] | None = None
    organs: Sequence[float] | None = None
    terms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Sums:
    """Sums over the voxels of each case, (B, K); 0 for classes that are not `active`.

    A case that annotates no organ is 0 throughout.
    """

    active: torch.Tensor  # 1 for background and annotated organs
    count: torch.Tensor  # voxels labelled l
    nll: torch.Tensor  # sum of -log p_l where the label is l
    focal: torch.Tensor  # sum of -(1 - p_l)^gamma log p_l where the label is l
    rest_nll: torch.Tensor  # sum of -log(1 - p_l) where the label is not l (one_vs_rest only)
    rest_focal: torch.Tensor  # sum of -p_l^gamma log(1 - p_l) where the label is not l
    overlap: torch.Tensor  # sum of p_l where the label is l
    mass: torch.Tensor  # sum of p_l over all voxels


def segmentation_loss(
    logits: torch.Tensor,
    label: torch.Tensor,
    annotated: torch.Tensor,
    settings: Loss,
    weights: LossWeights | None = None,
    whole: torch.Tensor | None = None,
) -> LossTerms:
    r"""Returns the loss of a batch, computed in float32 even under autocast (float64 stays).

    Partial labels: organs that a case does not annotate are merged with its background in
    probability space (logsumexp of their logits); the loss depends on those logits only through
    that sum.

    With p = softmax, y the label, w the class weights, v the organ weights (1 for background), sums
    over all voxels of the batch and the classes that their case annotates:

    * ``categorical`` (default): ce = sum w_y v_y (-log p_y) / sum w_y v_y;
      focal = sum v_y (-(1 - p_y)^gamma log p_y) / sum v_y.
    * ``one_vs_rest``, (1) and (2): each class l of each voxel gives ``-w_l log p_l`` where y = l,
      ``-log(1 - p_l)`` elsewhere; focal ``-(1 - p_l)^gamma log p_l`` and
      ``-p_l^gamma log(1 - p_l)``. All are multiplied by v_l and divided by the sum of their weights
      (w_l v_l where y = l, v_l elsewhere; focal: v_l).
    * dice (3): per case, v-weighted mean over organs of 1 - 2 sum p y / (sum p + sum y), smoothed
      by 1e-5 above and below as MONAI's DiceLoss; then the mean over cases. An organ that is
      annotated and lies outside the crop gives 1, practically without gradient.
    * gdice (4): per case 1 - 2 sum_l u_l sum p y / sum_l u_l (sum p + sum y),
      u_l = v_l / (sum y_l)^2, and u_l = 0 for a class that is absent from the crop (the term is 0
      if every class is absent); then the mean over cases.

    An organ's weight v thus scales its voxels in ce and focal, and its share of the mean in dice
    and gdice. Background counts in dice and gdice only with `settings.dice_background`. A case
    without any annotated organ counts nowhere.

    Args:
        logits: (B, 1+C, Z, Y, X).
        label: (B, Z, Y, X) int64, 0 = background, i+1 = organ i; organs that the case does not
            annotate count as background.
        annotated: (B, C) bool.
        settings: the plan's `loss`.
        weights: of classes (w), organs (v) and terms.
        whole: of a larger batch that these cases are a part of, from `denominators`: the losses of
            all its parts then add up to the loss of it, and so do their gradients.

    Raises:
        UserError: unknown `loss.form`.
    """
    if settings.form not in ("categorical", "one_vs_rest"):
        raise UserError("loss.form", settings.form, "use categorical or one_vs_rest")
    assert logits.shape[1] == annotated.shape[1] + 1, (logits.shape, annotated.shape)
    with torch.autocast(logits.device.type, enabled=False):
        z = logits if logits.dtype == torch.float64 else logits.float()
        flags = annotated.tolist()
        cases = [_case_sums(z[b], label[b], flags[b], settings) for b in range(z.shape[0])]
        sums = _Sums(*(torch.stack(column) for column in zip(*cases, strict=True)))
        ones = torch.ones_like(sums.count[0])
        weights = weights or LossWeights()
        w, v = _weights(weights, ones)
        if whole is None:
            whole = _divisors(_counted_in(sums.count, sums.active, w, v, settings))
        terms = {
            "ce": _voxel_term(sums, sums.nll, sums.rest_nll, w, v, settings.form) / whole[0],
            "focal": _voxel_term(sums, sums.focal, sums.rest_focal, ones, v, settings.form)
            / whole[1],
            "dice": _dice(sums, v, settings.dice_background) / whole[2],
            "gdice": _generalised_dice(sums, v, settings.dice_background) / whole[3],
        }
        total = torch.zeros((), dtype=z.dtype, device=z.device)
        for name in LOSS_TERMS:
            weight = getattr(settings, name) * weights.terms.get(name, 1.0)
            if weight:
                total = total + weight * terms[name]
    return LossTerms(total, **terms)


def class_weights(voxels: Sequence[float], mode: str) -> list[float]:
    """Returns one weight per class from voxel counts over the training labels.

    ``paper``: w_l = c (N - n_l) / n_l (1), c such that the weights sum to 1; ``sqrt``: the square
    roots of (N - n_l) / n_l, summing to 1; ``none``: 1 for each class (they sum to K). The
    categorical form does not depend on the scale; in the one-against-rest form w stands beside the
    negative branch's weight of 1, so there ``none`` is plain binary cross entropy and ``paper``
    weighs positives by less than 1.

    Args:
        voxels: (1+C) counts or frequencies, background first; each counted over the cases that
            annotate the class.
        mode: ``paper``, ``sqrt`` or ``none``. A class without voxels gets weight 0.

    Raises:
        UserError: unknown `mode`, or counts that are negative or not finite.
    """
    if mode not in ("paper", "sqrt", "none"):
        raise UserError("loss.class_weight", mode, "use paper, sqrt or none")
    if any(not math.isfinite(n) or n < 0 for n in voxels):
        raise UserError("class frequencies", list(voxels), "count voxels; none is negative")
    if mode == "none":
        return [1.0] * len(voxels)
    total = float(sum(voxels))
    weights = [(total - n) / n if n > 0 else 0.0 for n in voxels]
    if mode == "sqrt":
        weights = [math.sqrt(w) for w in weights]
    scale = sum(weights)
    return [w / scale if scale > 0 else 1.0 / len(weights) for w in weights]


def denominators(
    label: torch.Tensor,
    annotated: torch.Tensor,
    settings: Loss,
    weights: LossWeights,
    add_up: Callable[[torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """What the sums of a batch are divided by, from its labels alone: (4), one a loss term.

    Args:
        label: (B, Z, Y, X) uint8 or int64.
        annotated: (B, C) bool, on any device.
        settings: the plan's `loss`.
        weights: as for `segmentation_loss`.
        add_up: replaces what was counted in these cases by what is in all of the batch, where
            other processes have its other cases.
    """
    classes = annotated.shape[1] + 1
    counts, active = [], []
    for one, known in zip(label, annotated.to(label.device), strict=True):
        flags = torch.cat((known.any().reshape(1), known)).float()
        found = torch.bincount(one.flatten(), minlength=classes).float() * flags
        found[0] = (one.numel() - found[1:].sum()) * flags[0]  # unknown organs are background
        counts.append(found)
        active.append(flags)
    w, v = _weights(weights, torch.ones(classes, device=label.device))
    counted = _counted_in(torch.stack(counts), torch.stack(active), w, v, settings)
    if add_up is not None:
        add_up(counted)
    return _divisors(counted)


def _weights(weights: LossWeights, ones: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of classes and of organs, (K) each."""
    w = ones if weights.classes is None else ones.new_tensor(weights.classes)
    v = ones if weights.organs is None else ones.new_tensor([1.0, *weights.organs])
    return w, v


def _counted_in(
    count: torch.Tensor, active: torch.Tensor, w: torch.Tensor, v: torch.Tensor, settings: Loss
) -> torch.Tensor:
    """Weights of all voxels in ce and focal, and cases in dice and gdice: (4), additive."""
    rest = count.new_zeros(())
    if settings.form == "one_vs_rest":
        rest = ((count.sum(dim=1, keepdim=True) - count) * active * v).sum()
    shares = _share(active, v, settings.dice_background)
    labelled = _counted(active, settings.dice_background)
    voxels = torch.stack([(count * w * v).sum() + rest, (count * v).sum() + rest])
    cases = torch.stack([(s.sum(dim=1) > 0).sum() for s in (shares, labelled)])
    return torch.cat((voxels, cases.to(voxels)))


def _divisors(counted: torch.Tensor) -> torch.Tensor:
    """What was counted, with 1 for nothing."""
    return torch.where(counted > 0, counted, 1)


def _voxel_term(
    s: _Sums,
    positive: torch.Tensor,
    negative: torch.Tensor,
    w: torch.Tensor,
    v: torch.Tensor,
    form: str,
) -> torch.Tensor:
    """Weighted sum over voxels (categorical) or voxels and classes (one_vs_rest), as a scalar."""
    value = positive * w * v
    return (value + negative * v).sum() if form == "one_vs_rest" else value.sum()


def _share(active: torch.Tensor, v: torch.Tensor, background: bool) -> torch.Tensor:
    """Weight of each class of each case in dice, (B, K)."""
    return _counted(active * v, background)


def _dice(s: _Sums, v: torch.Tensor, background: bool) -> torch.Tensor:
    per_class = 1 - (2 * s.overlap + SMOOTH) / (s.mass + s.count + SMOOTH)
    share = _share(s.active, v, background)
    total = share.sum(dim=1)
    return ((per_class * share).sum(dim=1) / torch.where(total > 0, total, 1)).sum()


def _generalised_dice(s: _Sums, v: torch.Tensor, background: bool) -> torch.Tensor:
    present = s.count > 0
    u = torch.where(present, s.count.clamp_min(1).pow(-2), 0) * v
    u = _counted(u * s.active, background)
    above, below = 2 * (u * s.overlap).sum(dim=1), (u * (s.mass + s.count)).sum(dim=1)
    usable = below > 0
    return torch.where(usable, 1 - above / torch.where(usable, below, 1), 0).sum()


def _counted(weights: torch.Tensor, background: bool) -> torch.Tensor:
    """Drops background from (B, K) weights unless asked for, and where no other class is left."""
    only = (weights[:, 1:] != 0).sum(dim=1, keepdim=True) == 0
    first = weights[:, :1] if background else torch.zeros_like(weights[:, :1])
    return torch.cat((torch.where(only, 0, first), weights[:, 1:]), dim=1)


def _case_sums(
    logits: torch.Tensor, label: torch.Tensor, annotated: Sequence[bool], settings: Loss
) -> tuple[torch.Tensor, ...]:
    """The fields of `_Sums` for one case: logits (K, Z, Y, X), label (Z, Y, X) -> 8 tensors (K)."""
    classes = logits.shape[0]
    kept = [0] + [i + 1 for i, known in enumerate(annotated) if known]
    if len(kept) < classes:
        logits, label = _merge(logits, label, kept)
    log_p = torch.log_softmax(logits, dim=0)
    size = len(kept)
    nll, focal, overlap, mass = class_sums(log_p, label, settings.gamma)
    count = torch.bincount(label.flatten(), minlength=size).to(log_p.dtype)
    sums = [count, nll, focal, *_rest_sums(log_p, label, settings), overlap, mass]
    sums.insert(0, torch.ones_like(sums[0]))
    if size == 1:
        sums = [torch.zeros_like(s) if i < 2 else s * 0 for i, s in enumerate(sums)]
    if size == classes:
        return tuple(sums)
    index = torch.tensor(kept, device=logits.device)
    return tuple(s.new_zeros(classes).index_copy(0, index, s) for s in sums)


def _merge(
    logits: torch.Tensor, label: torch.Tensor, kept: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds the probability of the classes not in `kept` to background.

    Returns:
        logits (len(kept), Z, Y, X) and label (Z, Y, X) over the classes kept.
    """
    unknown = [i for i in range(logits.shape[0]) if i not in kept]
    background = torch.logsumexp(logits[[0, *unknown]], dim=0, keepdim=True)
    table = torch.zeros(logits.shape[0], dtype=torch.int64, device=label.device)
    for position, index in enumerate(kept):
        table[index] = position
    return torch.cat((background, logits[list(kept[1:])])), table[label]


def _rest_sums(
    log_p: torch.Tensor, label: torch.Tensor, settings: Loss
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative branches of (1) and (2), summed over the voxels without the class: two (K).

    log(1 - p) of a voxel's likeliest class is the logsumexp of the others: exact, also where p
    rounds to 1.
    """
    if settings.form != "one_vs_rest" or log_p.shape[0] == 1:
        zero = log_p.new_zeros(log_p.shape[0])
        return zero, zero
    top = log_p.argmax(dim=0, keepdim=True)
    others = log_p.scatter(0, top, -math.inf).logsumexp(dim=0, keepdim=True)
    p = log_p.exp()
    log_rest = torch.log1p(-p.scatter(0, top, 0.0)).scatter(0, top, others)
    log_rest = log_rest.scatter(0, label[None], 0.0)
    focal = _power(p, settings.gamma) * log_rest
    return -log_rest.sum(dim=(1, 2, 3)), -focal.sum(dim=(1, 2, 3))


def class_sums(
    log_p: torch.Tensor, label: torch.Tensor, gamma: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums over voxels per class l, differentiable once in `log_p`.

    Keeps `log_p`, the label and one map of voxels for the backward pass, which fills one buffer.

    Args:
        log_p: (K, Z, Y, X) log-probabilities.
        label: (Z, Y, X) int64 below K.
        gamma: exponent of the focal term.

    Returns:
        Four (K): of -log p_l, of -(1 - p_l)^gamma log p_l and of p_l where the label is l; and of
        p_l over all voxels.
    """
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    out = _ClassSums.apply(log_p, label, gamma)  # type: ignore[no-untyped-call]
    return out


class _ClassSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, log_p: torch.Tensor, label: torch.Tensor, gamma: float
    ) -> tuple[torch.Tensor, ...]:
        log_py = log_p.gather(0, label[None])[0]
        ctx.gamma = gamma
        ctx.save_for_backward(log_p, label, log_py)
        p_y = log_py.exp()
        focal = _power((1 - p_y).clamp_(min=0), gamma).mul_(log_py)
        mass = torch.stack([channel.exp().sum() for channel in log_p])
        classes = len(log_p)
        nll, focal = -_sum_by(label, log_py, classes), -_sum_by(label, focal, classes)
        return nll, focal, _sum_by(label, p_y, classes), mass

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        log_p, label, log_py = ctx.saved_tensors
        g_nll, g_focal, g_overlap, g_mass = (g[label] if i < 3 else g for i, g in enumerate(grads))
        p_y = log_py.exp()
        rest = (1 - p_y).clamp_(min=torch.finfo(p_y.dtype).tiny)
        slope = ctx.gamma * _power(rest, ctx.gamma - 1) * p_y * log_py - _power(rest, ctx.gamma)
        at_label = g_focal.mul_(slope).add_(g_overlap.mul_(p_y)).sub_(g_nll)
        grad = log_p.exp().mul_(g_mass.view(-1, 1, 1, 1))
        return grad.scatter_add_(0, label[None], at_label[None]), None, None


def _power(base: torch.Tensor, exponent: float) -> torch.Tensor:
    if exponent == 2:
        return base * base
    return base.clone() if exponent == 1 else base.pow(exponent)


def _sum_by(label: torch.Tensor, values: torch.Tensor, classes: int) -> torch.Tensor:
    """Sums `values` (Z, Y, X) by label -> (classes)."""
    if values.device.type != "cpu":  # no atomics: deterministic, and not slow for few classes
        zero = values.new_zeros(())
        return torch.stack([torch.where(label == c, values, zero).sum() for c in range(classes)])
    rows = label.reshape(-1, label.shape[-1])  # a float32 running sum over a volume drifts
    sums = values.new_zeros((len(rows), classes))
    return sums.scatter_add_(1, rows, values.reshape(rows.shape)).sum(dim=0)
