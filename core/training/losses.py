"""Segmentation loss: cross entropy, focal, Dice and generalised Dice with partial labels.

Tensors: logits (B, K, Z, Y, X) with K = 1 + C classes (0 = background), label (B, C, Z, Y, X) with
each organ's share of a voxel in 255ths, annotated (B, C). Everything is computed from one
log-softmax and a few sums per case and class. The numbers in brackets are the equations of the
paper, section 4.1.1. See `segmentation_loss` for the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from core.data.grid import bounding_box
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
    count: torch.Tensor  # sum of q_l, the shares of the label
    nll: torch.Tensor  # sum of -q_l log p_l
    focal: torch.Tensor  # sum of -q_l (1 - p_l)^gamma log p_l
    rest_nll: torch.Tensor  # sum of -(1 - q_l) log(1 - p_l) (one_vs_rest only)
    rest_focal: torch.Tensor  # sum of -(1 - q_l) p_l^gamma log(1 - p_l)
    overlap: torch.Tensor  # sum of min(p_l, q_l)
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

    With p = softmax, q the shares of the label (1 for one class where no border runs through the
    voxel; background has what organs leave), w the class weights, v the organ weights (1 for
    background), sums over all voxels of the batch and the classes l that their case annotates:

    * ``categorical`` (default): ce = sum w v q (-log p) / sum w v q;
      focal = sum w v q (-(1 - p)^gamma log p) / sum w v q. Without w background's many certain
      voxels would leave next to nothing of it: at Dice 0.8 a fortieth of ce's gradient.
    * ``one_vs_rest``, (1) and (2): each class of each voxel gives ``-w log p`` for its share q,
      ``-log(1 - p)`` for the rest; focal ``-(1 - p)^gamma log p`` and
      ``-p^gamma log(1 - p)``. All are multiplied by v and divided by the sum of their weights
      (w v for q, v for the rest; focal: v). With ``class_weight: prediction`` w is that
      of (1) with the probabilities predicted for p_n, case by case and without gradient:
      w_l = c (N - sum p_l) / sum p_l over the N voxels of the crop, c such that the weights of the
      classes that the case annotates sum to 1 (C. H. Sudre et al., "Generalised Dice overlap as a
      deep learning loss function for highly unbalanced segmentations", DLMIA 2017, whose form has
      two classes); ce is then divided by the number of voxels and classes (and their v_l).
    * dice (3): per case, v-weighted mean over organs of 1 - 2 sum min(p, q) / (sum p + sum q),
      smoothed by 1e-5 above and below as MONAI's DiceLoss; then the mean over cases. The minimum is
      the product p q of (3) where q is 0 or 1, and 0 is reached for p = q alone (Z. Wang et al.,
      "Dice semimetric losses", MICCAI 2023). An organ that is annotated and lies outside the crop
      gives 1, practically without gradient.
    * gdice (4): per case 1 - 2 sum_l u_l sum min(p, q) / sum_l u_l (sum p + sum q),
      u_l = v_l / (sum q_l)^2, and u_l = 0 for a class that is absent from the crop (the term is 0
      if every class is absent); then the mean over cases.

    An organ's weight v thus scales its voxels in ce and focal, and its share of the mean in dice
    and gdice. Background counts in dice and gdice only with `settings.dice_background`. A case
    without any annotated organ counts nowhere.

    Args:
        logits: (B, 1+C, Z, Y, X).
        label: (B, C, Z, Y, X) uint8, shares in 255ths, at most 255 together; those of organs that
            the case does not annotate count as background.
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
        weights = weights or LossWeights()
        w, v = _weights(weights, torch.ones_like(sums.count[0]))
        if whole is None:
            whole = _divisors(_counted_in(sums.count, sums.active, w, v, settings))
        w_ce = _predicted_weights(sums) if settings.class_weight == "prediction" else w
        w_focal = _focal_weights(w, settings)
        terms = {
            "ce": _voxel_term(sums, sums.nll, sums.rest_nll, w_ce, v, settings.form) / whole[0],
            "focal": _voxel_term(sums, sums.focal, sums.rest_focal, w_focal, v, settings.form)
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

    ``paper``: w_l = c (N - n_l) / n_l, c such that the weights sum to 1: equation (1) with voxels
    of labels for its p_n (with predictions for p_n: ``prediction``, in `segmentation_loss`);
    ``sqrt``: the square roots of (N - n_l) / n_l, summing to 1; ``none``: 1 for each class (they
    sum to K). The categorical form does not depend on the scale; in the one-against-rest form w
    stands beside the negative branch's weight of 1, so there ``none`` is plain binary cross entropy
    and ``paper`` weighs positives by less than 1.

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
        label: (B, C, Z, Y, X) uint8.
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
        found = _volumes(one) * known
        rest = one[0].numel() - found.sum()  # unknown organs are background
        counts.append(torch.cat((rest.reshape(1), found)) * flags[0])
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


def _focal_weights(w: torch.Tensor, settings: Loss) -> torch.Tensor:
    """Of classes in the focal term: those of cross entropy; (2) of the paper has none."""
    return torch.ones_like(w) if settings.form == "one_vs_rest" else w


def _predicted_weights(s: _Sums) -> torch.Tensor:
    """Equation (1) with the probabilities predicted: (B, K), of each case; no gradient."""
    mass = s.mass.detach() * s.active
    rest = mass.sum(dim=1, keepdim=True) - mass
    w = torch.where(s.active > 0, rest / mass.clamp_min(torch.finfo(mass.dtype).eps), 0)
    return w / w.sum(dim=1, keepdim=True).clamp_min(torch.finfo(mass.dtype).tiny)


def _counted_in(
    count: torch.Tensor, active: torch.Tensor, w: torch.Tensor, v: torch.Tensor, settings: Loss
) -> torch.Tensor:
    """Weights of all voxels in ce and focal, and cases in dice and gdice: (4), additive."""
    rest = count.new_zeros(())
    if settings.form == "one_vs_rest":
        rest = ((count.sum(dim=1, keepdim=True) - count) * active * v).sum()
    shares = _share(active, v, settings.dice_background)
    labelled = _counted(active, settings.dice_background)
    both = (w, _focal_weights(w, settings))
    voxels = torch.stack([(count * u * v).sum() + rest for u in both])
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
    """The fields of `_Sums` of one case: logits (K, Z, Y, X), label (C, Z, Y, X) -> 8 tensors (K).

    Probability and shares of the organs that are not annotated are background's.
    """
    classes = logits.shape[0]
    kept = [0] + [i + 1 for i, known in enumerate(annotated) if known]
    if len(kept) < classes:
        rest = [i for i in range(classes) if i not in kept[1:]]
        # Rows one by one: a list of numbers would be copied to a GPU, and waited for.
        background = torch.logsumexp(torch.stack([logits[i] for i in rest]), dim=0)
        logits = torch.stack([background, *(logits[i] for i in kept[1:])])
        label = torch.stack([label[i - 1] for i in kept[1:]]) if kept[1:] else label[:0]
    shares = torch.cat((255 - label.sum(dim=0, keepdim=True, dtype=torch.uint8), label))
    log_p = torch.log_softmax(logits, dim=0)
    sums = [_volumes(shares).to(log_p.dtype), *class_sums(log_p, shares, settings.gamma)]
    sums[3:3] = _rest_sums(log_p, shares, settings)
    sums.insert(0, torch.ones_like(sums[0]))
    if len(kept) == 1:
        sums = [torch.zeros_like(s) if i < 2 else s * 0 for i, s in enumerate(sums)]
    if len(kept) == classes:
        return tuple(sums)
    place = {c: i for i, c in enumerate(kept)}
    return tuple(
        torch.stack([s[place[c]] if c in place else s.new_zeros(()) for c in range(classes)])
        for s in sums
    )


def _volumes(shares: torch.Tensor) -> torch.Tensor:
    """Sums of shares (K, Z, Y, X) over the voxels, in voxels (K)."""
    return (shares.sum(dim=(1, 2, 3), dtype=torch.int64).double() / 255).float()


def _rest_sums(
    log_p: torch.Tensor, shares: torch.Tensor, settings: Loss
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative branches of (1) and (2), summed over what is not of the class: two (K).

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
    log_rest = log_rest * (255 - shares) / 255
    focal = _power(p, settings.gamma) * log_rest
    return -log_rest.sum(dim=(1, 2, 3)), -focal.sum(dim=(1, 2, 3))


def class_sums(
    log_p: torch.Tensor, shares: torch.Tensor, gamma: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums over voxels per class l, differentiable once in `log_p`.

    Keeps `log_p` and the shares for the backward pass, which fills one buffer.

    Args:
        log_p: (K, Z, Y, X) log-probabilities.
        shares: (K, Z, Y, X) uint8, of the label, in 255ths: q.
        gamma: exponent of the focal term.

    Returns:
        Four (K): of -q log p, of -q (1 - p)^gamma log p, of min(p, q), and of p.
    """
    out: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    out = _ClassSums.apply(log_p, shares, gamma)  # type: ignore[no-untyped-call]
    return out


class _ClassSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, log_p: torch.Tensor, shares: torch.Tensor, gamma: float
    ) -> tuple[torch.Tensor, ...]:
        ctx.gamma = gamma
        ctx.save_for_backward(log_p, shares)
        sums = []
        for one, share in zip(log_p, shares, strict=True):
            box, p = _box(share), one.exp()
            mass, p, q = p.sum(), p[box], share[box].to(one.dtype).div_(255)
            overlap, nll = torch.minimum(p, q).sum(), q.mul_(one[box])
            focal = _power(p.neg_().add_(1).clamp_(min=0), gamma).mul_(nll)
            sums.append(torch.stack((-nll.sum(), -focal.sum(), overlap, mass)))
        return torch.stack(sums, dim=1).unbind()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        log_p, shares = ctx.saved_tensors
        out = torch.empty_like(log_p)
        for c, (g_nll, g_focal, g_overlap, g_mass) in enumerate(zip(*grads, strict=True)):
            box, whole = _box(shares[c]), torch.exp(log_p[c], out=out[c])
            p, q = whole[box].clone(), shares[c][box].to(log_p.dtype).div_(255)
            rest = (1 - p).clamp_(min=torch.finfo(p.dtype).tiny)
            slope = _power(rest, ctx.gamma - 1).mul_(p).mul_(log_p[c][box]).mul_(ctx.gamma)
            slope.sub_(_power(rest, ctx.gamma)).mul_(g_focal).sub_(g_nll)
            whole.mul_(g_mass)[box].add_(slope.mul_(q)).add_((p <= q).mul(g_overlap).mul_(p))
        return out, None, None


def _box(shares: torch.Tensor) -> tuple[slice, ...]:
    """Outside of it a class has no share (Z, Y, X) of any voxel; all of it on a GPU, unread."""
    if shares.device.type != "cpu":
        return (slice(None),) * 3
    return bounding_box(shares.numpy()) or (slice(0),) * 3


def _power(base: torch.Tensor, exponent: float) -> torch.Tensor:
    if exponent == 2:
        return base * base
    return base.clone() if exponent == 1 else base.pow(exponent)
