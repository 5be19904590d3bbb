"""The loss against MONAI, against a float64 loop over voxels, and with partial labels."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceCELoss, DiceLoss, FocalLoss, GeneralizedDiceLoss
from torch.nn import functional as F

from core.errors import UserError
from core.plan.schema import LOSS_TERMS, LOSSES, Loss
from core.training import losses
from core.training.losses import LossTerms, LossWeights, class_sums, class_weights

C = 3
SHAPE = (4, 5, 6)


def batch(seed=0, cases=2, organs=C, shape=SHAPE, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn((cases, 1 + organs, *shape), generator=generator, dtype=dtype)
    label = torch.randint(0, 1 + organs, (cases, *shape), generator=generator)
    label[:, 0, 0, : 1 + organs] = torch.arange(1 + organs)  # every class is present
    return logits.requires_grad_(), label, torch.ones(cases, organs, dtype=torch.bool)


def shares_of(label, organs):
    """A label map (B, Z, Y, X) as shares of voxels (B, C, Z, Y, X)."""
    return torch.stack([(label == i + 1).byte() * 255 for i in range(organs)], dim=1)


def soft_batch(seed=0, cases=2, organs=C, shape=SHAPE):
    """Shares that add up to a whole at most; a third of the voxels are of one class alone."""
    logits, label, known = batch(seed, cases, organs, shape)
    generator = torch.Generator().manual_seed(seed + 1)
    drawn = torch.rand((cases, 1 + organs, *shape), generator=generator).softmax(1) * 255
    soft = drawn.floor()[:, 1:].byte()
    hard = torch.rand((cases, 1, *shape), generator=generator) < 1 / 3
    return logits, torch.where(hard, shares_of(label, organs), soft), known


def segmentation_loss(logits, label, known, *rest):
    """Of shares, or of a label map."""
    shares = label if label.dim() == 5 else shares_of(label, known.shape[1])
    return losses.segmentation_loss(logits, shares, known, *rest)


def denominators(label, known, *rest):
    return losses.denominators(shares_of(label, known.shape[1]), known, *rest)


def grad(value, logits):
    (out,) = torch.autograd.grad(value, logits, retain_graph=True)
    return out


def assert_same(ours, theirs, logits, rtol=1e-6):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-9)
    scale = grad(theirs, logits).abs().max().item()
    torch.testing.assert_close(grad(ours, logits), grad(theirs, logits), rtol=0, atol=rtol * scale)


def reference(logits, label, annotated, config, w=None, v=None):
    """The docstring's formulas, voxel by voxel in float64."""
    K = logits.shape[1]
    w = [1.0] * K if w is None else w.tolist()
    v = [1.0] * K if v is None else [1.0, *v.tolist()]
    ce = focal = ce_weight = focal_weight = 0.0
    shares = (label if label.dim() == 5 else shares_of(label, K - 1)).double() / 255
    dices, gdices = [], []
    for b in range(logits.shape[0]):
        organs = [i + 1 for i in range(K - 1) if annotated[b, i]]
        if not organs:
            continue
        hidden = [i for i in range(1, K) if i not in organs]
        classes = [0, *organs]
        n = dict.fromkeys(classes, 0.0)
        inside = {c: torch.zeros((), dtype=torch.float64) for c in classes}
        mass = dict(inside)
        for z, y, x in torch.cartesian_prod(*map(torch.arange, logits.shape[2:])).tolist():
            soft = logits[b, :, z, y, x].double().softmax(0)
            p = {c: soft[c] for c in organs} | {0: soft[[0, *hidden]].sum()}
            q = {c: float(shares[b, c - 1, z, y, x]) for c in organs}
            q[0] = 1 - sum(q.values())
            for c in classes:
                n[c] += q[c]
                inside[c] = inside[c] + (p[c] if p[c] < q[c] else q[c])
                mass[c] = mass[c] + p[c]
                ce = ce - q[c] * w[c] * v[c] * p[c].log()
                u = 1.0 if config.form == "one_vs_rest" else w[c]  # (2) has no weights of classes
                focal = focal - q[c] * u * v[c] * (1 - p[c]) ** config.gamma * p[c].log()
                ce_weight = ce_weight + q[c] * w[c] * v[c]
                focal_weight = focal_weight + q[c] * u * v[c]
                if config.form == "one_vs_rest":
                    no = (1 - q[c]) * v[c]
                    ce = ce - no * (1 - p[c]).log()
                    focal = focal - no * p[c] ** config.gamma * (1 - p[c]).log()
                    ce_weight, focal_weight = ce_weight + no, focal_weight + no
        counted = classes if config.dice_background else organs
        above = sum(v[c] / n[c] ** 2 * inside[c] for c in counted if n[c])
        below = sum(v[c] / n[c] ** 2 * (mass[c] + n[c]) for c in counted if n[c])
        gdices.append(1 - 2 * above / below if any(n[c] for c in counted) else torch.zeros(()))
        each = [1 - (2 * inside[c] + 1e-5) / (mass[c] + n[c] + 1e-5) for c in counted]
        share = [v[c] for c in counted]
        dices.append(sum(a * s for a, s in zip(each, share, strict=True)) / sum(share))
    return {
        "ce": ce / ce_weight,
        "focal": focal / focal_weight,
        "dice": sum(dices) / len(dices),
        "gdice": sum(gdices) / len(gdices),
    }


# --- against MONAI and torch ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_cross_entropy_is_torchs_weighted_one(dtype):
    logits, label, known = batch(dtype=dtype)
    w = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=dtype)
    ours = segmentation_loss(logits, label, known, Loss(), LossWeights(w.tolist())).ce
    rtol = 1e-6 if dtype == torch.float64 else 1e-5
    assert_same(ours, F.cross_entropy(logits, label, weight=w), logits, rtol)


def test_focal_is_monais_softmax_focal_over_the_true_class():
    logits, label, known = batch(dtype=torch.float32)
    ours = segmentation_loss(logits, label, known, Loss()).focal
    monai = FocalLoss(to_onehot_y=True, use_softmax=True, gamma=2.0)(logits, label[:, None])
    assert_same(ours, monai * (1 + C), logits)  # MONAI's mean runs over one-hot's zeros too


@pytest.mark.parametrize("background", [False, True])
def test_dice_is_monais(background):
    logits, label, known = batch()
    ours = segmentation_loss(logits, label, known, Loss(dice_background=background)).dice
    monai = DiceLoss(include_background=background, to_onehot_y=True, softmax=True)
    assert_same(ours, monai(logits, label[:, None]), logits)


@pytest.mark.parametrize("background", [False, True])
def test_dice_is_monais_where_a_class_is_absent(background):
    logits, label, known = batch()
    label[label == 2] = 0
    ours = segmentation_loss(logits, label, known, Loss(dice_background=background)).dice
    monai = DiceLoss(include_background=background, to_onehot_y=True, softmax=True)
    assert_same(ours, monai(logits, label[:, None]), logits)


@pytest.mark.parametrize("background", [False, True])
def test_generalised_dice_is_monais_where_every_class_is_present(background):
    logits, label, known = batch()
    ours = segmentation_loss(logits, label, known, Loss(dice_background=background)).gdice
    monai = GeneralizedDiceLoss(
        include_background=background, to_onehot_y=True, softmax=True, smooth_nr=0, smooth_dr=0
    )
    assert_same(ours, monai(logits, label[:, None]), logits)


def test_total_is_the_weighted_sum_as_monais_dice_ce():
    logits, label, known = batch()
    config = Loss(ce=0.7, focal=0.0, dice=0.3, gdice=0.0)
    ours = segmentation_loss(logits, label, known, config).total
    monai = DiceCELoss(
        include_background=False, to_onehot_y=True, softmax=True, lambda_ce=0.7, lambda_dice=0.3
    )
    assert_same(ours, monai(logits, label[:, None]), logits)


def test_focal_still_teaches_where_dice_is_at_eight_tenths():
    """With background's many certain voxels in its mean it had a twentieth of Dice's gradient."""
    places = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in (56, 48, 48)),
                                        indexing="ij"), -1)  # fmt: skip
    centres = ((28.0, 24.0, 24.0), (20.0, 12.0, 24.0), (30.0, 24.0, 10.0), (30.0, 24.0, 38.0))
    radii = ((6.0, 4.0, 4.0), (5.0, 5.0, 9.0), (6.0, 4.0, 3.0), (6.0, 4.0, 3.0))
    inside, scores = [], [torch.zeros(places.shape[:3])]
    for centre, radius in zip(map(torch.tensor, centres), map(torch.tensor, radii), strict=True):
        inside.append(((places - centre) / radius).norm(dim=-1) < 1)
        depth = 1 - ((places - centre - 0.6) / radius).norm(dim=-1)
        scores.append((depth * float(radius.min()) * 2).clamp(-6, 6))
    logits = torch.stack(scores)[None].requires_grad_()
    label = torch.stack(inside)[None].byte() * 255
    found = [scores[i].detach() > 0 for i in range(1, 5)]
    dice = [2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in zip(found, inside, strict=True)]
    assert sum(dice) / 4 == pytest.approx(0.8, abs=0.05)
    counts = [float(m.sum()) for m in inside]
    w = class_weights([places[..., 0].numel() - sum(counts), *counts], "sqrt")
    known = torch.ones(1, 4, dtype=torch.bool)
    got = segmentation_loss(logits, label, known, Loss(), LossWeights(w))
    norms = {term: float(grad(getattr(got, term), logits).norm()) for term in LOSS_TERMS}
    assert 0.5 < norms["focal"] / norms["ce"] < 2
    assert 0.5 < norms["focal"] / norms["dice"] < 5


# --- against the loop ----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["categorical", "one_vs_rest"])
@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("partial", ["all", "some", "one case none"])
def test_every_term_equals_the_loop(form, background, weighted, partial):
    logits, label, known = batch(seed=3, shape=(2, 3, 4))
    label[1][label[1] == 1] = 0  # organ 1 is absent from case 1
    if partial != "all":
        known[0, 1] = False
        known[1] = partial == "some"
    w = torch.tensor([0.05, 0.6, 0.25, 0.1], dtype=torch.float64) if weighted else None
    v = torch.tensor([2.0, 0.5, 1.5], dtype=torch.float64) if weighted else None
    config = Loss(form=form, dice_background=background)
    weights = LossWeights(w.tolist(), v.tolist()) if weighted else None
    ours = segmentation_loss(logits, label, known, config, weights)
    loop = reference(logits, label, known, config, w, v)
    for term in LOSS_TERMS:
        assert_same(getattr(ours, term), loop[term], logits)


@pytest.mark.parametrize("form", ["categorical", "one_vs_rest"])
@pytest.mark.parametrize("partial", [False, True])
def test_every_term_of_soft_labels_equals_the_loop(form, partial):
    logits, label, known = soft_batch(seed=5, shape=(2, 3, 4))
    known[0, 1] = not partial
    w = torch.tensor([0.05, 0.6, 0.25, 0.1], dtype=torch.float64)
    v = torch.tensor([2.0, 0.5, 1.5], dtype=torch.float64)
    config = Loss(form=form, dice_background=True)
    ours = segmentation_loss(logits, label, known, config, LossWeights(w.tolist(), v.tolist()))
    loop = reference(logits, label, known, config, w, v)
    for term in LOSS_TERMS:
        assert_same(getattr(ours, term), loop[term], logits)
    whole = losses.denominators(label, known, config, LossWeights(w.tolist(), v.tolist()))
    parts = [
        losses.segmentation_loss(*(x[i : i + 1] for x in (logits, label, known)), config,
                                 LossWeights(w.tolist(), v.tolist()), whole.double())
        for i in range(2)
    ]  # fmt: skip
    torch.testing.assert_close(parts[0].total + parts[1].total, ours.total, rtol=1e-6, atol=0)


def test_soft_labels_are_learned_as_they_are():
    """The product in place of the minimum has its least loss at hard labels, not at these."""
    label = torch.tensor([51, 102, 153, 204], dtype=torch.uint8).reshape(1, 1, 1, 2, 2)
    known = torch.ones(1, 1, dtype=torch.bool)
    q = torch.cat((255 - label, label), dim=1).double() / 255
    config = Loss(ce=0.0, focal=0.0, dice=1.0, gdice=0.0)
    exact = segmentation_loss(q.log(), label, known, config).total
    assert abs(exact.item()) < 1e-9
    for towards in (0.0, 1.0):  # 0 and 1, or one half
        p = q + 0.1 * ((q > 0.5).double() - q if towards else 0.5 - q)
        assert segmentation_loss(p.log(), label, known, config).total.item() > 1e-3
    logits = torch.zeros(1, 2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.02)
    for _ in range(600):
        optimiser.zero_grad()
        segmentation_loss(logits, label, known, Loss(focal=0.0, dice=1.0)).total.backward()
        optimiser.step()
    torch.testing.assert_close(logits.softmax(1).detach(), q, atol=0.02, rtol=0)


def test_gamma_is_the_focal_exponent():
    logits, label, known = batch(shape=(2, 2, 4))
    for form in ("categorical", "one_vs_rest"):
        for gamma in (0.5, 1.0, 3.5):
            config = Loss(form=form, gamma=gamma)
            ours = segmentation_loss(logits, label, known, config).focal
            assert_same(ours, reference(logits, label, known, config)["focal"], logits)


def test_one_vs_rest_has_the_negative_branches_of_equations_1_and_2():
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    logits = p.log().view(1, 3, 1, 1, 1)
    label = torch.ones((1, 1, 1, 1), dtype=torch.int64)
    w = torch.tensor([0.1, 0.5, 0.4], dtype=torch.float64)
    known = torch.ones(1, 2, dtype=torch.bool)
    got = segmentation_loss(logits, label, known, Loss(form="one_vs_rest"), LossWeights(w.tolist()))
    ce = 0.5 * -math.log(0.2) - math.log(1 - 0.7) - math.log(1 - 0.1)
    focal = -(0.8**2) * math.log(0.2) - 0.7**2 * math.log(0.3) - 0.1**2 * math.log(0.9)
    assert got.ce.item() == pytest.approx(ce / 2.5)
    assert got.focal.item() == pytest.approx(focal / 3)


PREDICTED = Loss(form="one_vs_rest", class_weight="prediction")


def test_weights_of_equation_1_from_the_prediction_are_sudres():
    logits, label, known = batch(cases=2)
    known[0, 1] = False
    label[0][label[0] == 2] = 0
    above = below = 0.0
    for b in range(2):
        p = logits[b].softmax(0)
        classes = [i for i in range(1 + C) if i == 0 or known[b, i - 1]]
        hidden = [i for i in range(1, 1 + C) if i not in classes]
        q = {i: p[i] for i in classes} | {0: p[[0, *hidden]].sum(0)}
        ratio = {i: ((1 - v).sum() / v.sum()).item() for i, v in q.items()}
        for i, v in q.items():
            at = label[b] == i
            above = above - ratio[i] / sum(ratio.values()) * v[at].log().sum()
            above = above - (1 - v[~at]).log().sum()
            below += label[b].numel()
    got = segmentation_loss(logits, label, known, PREDICTED)
    assert_same(got.ce, above / below, logits)
    paper = segmentation_loss(
        logits, label, known, dataclasses.replace(PREDICTED, class_weight="paper")
    )
    assert not torch.allclose(got.ce, paper.ce)
    assert torch.equal(got.focal, paper.focal)


def test_weights_from_a_prediction_without_mass_are_finite():
    logits = torch.tensor([800.0, 0.0, -800.0]).view(1, 3, 1, 1, 1).expand(1, 3, 2, 2, 2)
    logits = logits.clone().requires_grad_()
    label = torch.ones((1, 2, 2, 2), dtype=torch.int64)
    for known in (torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2, dtype=torch.bool)):
        got = segmentation_loss(logits, label * known[0, 0], known, PREDICTED)
        assert got.total.isfinite()
        assert grad(got.total, logits).isfinite().all()


def test_one_vs_rest_stays_finite_and_exact_where_p_rounds_to_one():
    logits = torch.tensor([60.0, 0.0, -60.0]).view(1, 3, 1, 1, 1).requires_grad_()
    label = torch.ones((1, 1, 1, 1), dtype=torch.int64)
    known = torch.ones(1, 2, dtype=torch.bool)
    got = segmentation_loss(logits, label, known, Loss(form="one_vs_rest"))
    assert got.ce.item() == pytest.approx((60 + 60) / 3)  # -log p_1 = 60 and -log(1 - p_0) = 60
    assert grad(got.total, logits).isfinite().all()


# --- partial labels (D10) ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "weight"),
    [("categorical", "sqrt"), ("one_vs_rest", "sqrt"), ("one_vs_rest", "prediction")],
)
@given(seed=st.integers(0, 10_000), share=st.floats(0.01, 0.98))
@settings(max_examples=15, deadline=None)
def test_moving_mass_between_background_and_unannotated_organs_changes_nothing(
    form, weight, seed, share
):
    logits, label, known = batch(seed=seed, cases=1)
    known[0, 1] = False
    label[label == 2] = 0
    p = logits.detach().softmax(1)
    label = soft_batch(seed=seed, cases=1)[1] if seed % 2 else label
    moved = p.clone()
    both = p[:, 0] + p[:, 2]
    moved[:, 0], moved[:, 2] = share * both, (1 - share) * both
    config = Loss(form=form, dice=1.0, class_weight=weight, dice_background=True)
    before = segmentation_loss(p.log(), label, known, config)
    after = segmentation_loss(moved.log(), label, known, config)
    for term in LOSSES:
        torch.testing.assert_close(getattr(before, term), getattr(after, term))
    known[0, 1] = True  # and it is the annotation that does it
    assert not torch.allclose(
        segmentation_loss(p.log(), label, known, config).total,
        segmentation_loss(moved.log(), label, known, config).total,
    )


def test_merged_gradient_is_the_share_of_background():
    logits, label, known = batch(cases=1)
    known[0, 0] = known[0, 2] = False
    label[label != 2] = 0
    got = grad(segmentation_loss(logits, label, known, Loss(dice_background=True)).total, logits)
    p = logits.detach().softmax(1)
    merged = got[:, [0, 1, 3]].sum(1, keepdim=True)
    share = p[:, [0, 1, 3]] / p[:, [0, 1, 3]].sum(1, keepdim=True)
    torch.testing.assert_close(got[:, [0, 1, 3]], merged * share)
    torch.testing.assert_close(got.sum(1), torch.zeros_like(got[:, 0]))
    small = torch.stack((logits[:, [0, 1, 3]].logsumexp(1), logits[:, 2]), 1)
    two = segmentation_loss(
        small, (label == 2).long(), torch.ones(1, 1, dtype=torch.bool), Loss(dice_background=True)
    )
    torch.testing.assert_close(got, grad(two.total, logits))


def test_label_of_an_unannotated_organ_counts_as_background():
    logits, label, known = batch()
    known[:, 2] = False
    cleared = torch.where(label == 3, 0, label)
    a = segmentation_loss(logits, label, known, Loss(dice=1.0))
    b = segmentation_loss(logits, cleared, known, Loss(dice=1.0))
    assert a.total.item() == b.total.item()


def test_case_without_annotation_counts_nowhere():
    logits, label, known = batch()
    known[1] = False
    config = Loss(dice=1.0, dice_background=True)
    both = segmentation_loss(logits, label, known, config)
    alone = segmentation_loss(logits[:1], label[:1], known[:1], config)
    for term in LOSSES:
        torch.testing.assert_close(getattr(both, term), getattr(alone, term))
    none = segmentation_loss(logits, label, torch.zeros_like(known), config)
    assert none.total.item() == 0
    assert not grad(none.total, logits).any()


# --- weights -------------------------------------------------------------------------------


def test_absent_class_has_no_weight_in_generalised_dice():
    logits, label, known = batch(cases=1, shape=(2, 3, 4))
    label[label == 2] = 0
    ours = segmentation_loss(logits, label, known, Loss()).gdice
    assert_same(ours, reference(logits, label, known, Loss())["gdice"], logits)
    nothing = segmentation_loss(logits, torch.zeros_like(label), known, Loss()).gdice
    assert nothing.item() == 0
    assert not grad(nothing, logits).any()


def test_organ_weight_zero_takes_the_organ_out_of_every_term():
    logits, label, known = batch(cases=1)
    weights = LossWeights(organs=[1.0, 0.0, 1.0])
    got = segmentation_loss(logits, label, known, Loss(dice=1.0), weights)
    p = logits.detach().softmax(1)
    moved = p.clone()  # other probabilities inside the organ
    inside = label[0] == 2
    moved[0, 0][inside], moved[0, 1][inside] = p[0, 1][inside], p[0, 0][inside]
    got2 = segmentation_loss(moved.log(), label, known, Loss(), weights)
    torch.testing.assert_close(got.ce, got2.ce)
    torch.testing.assert_close(got.focal, got2.focal)
    two = known.clone()
    two[0, 1] = False
    dice = segmentation_loss(logits, label, two, Loss())
    torch.testing.assert_close(got.dice, dice.dice)
    torch.testing.assert_close(got.gdice, dice.gdice)


def test_term_weights_multiply_the_plans():
    logits, label, known = batch()
    config = Loss(ce=2.0, focal=1.0, gdice=0.5, dice=0.0)
    got = segmentation_loss(
        logits, label, known, config, LossWeights(terms={"ce": 0.25, "focal": 0.0})
    )
    torch.testing.assert_close(got.total, 0.5 * got.ce + 0.5 * got.gdice)


@given(st.lists(st.integers(0, 10**8), min_size=2, max_size=12), st.sampled_from(["paper", "sqrt"]))
def test_class_weights_sum_to_one_and_favour_the_rare(voxels, mode):
    got = class_weights([float(n) for n in voxels], mode)
    assert sum(got) == pytest.approx(1.0)
    seen = sorted((n, w) for n, w in zip(voxels, got, strict=True) if n)
    if len(seen) > 1:
        assert all(a[1] >= b[1] for a, b in itertools.pairwise(seen))
        assert all(w == 0 for n, w in zip(voxels, got, strict=True) if n == 0)


def test_class_weights_are_equation_1():
    raw = [(1000 - n) / n for n in (900, 90, 10)]
    assert class_weights([900, 90, 10], "paper") == pytest.approx([r / sum(raw) for r in raw])
    root = [math.sqrt(r) for r in raw]
    assert class_weights([900, 90, 10], "sqrt") == pytest.approx([r / sum(root) for r in root])
    assert class_weights([900, 90, 10], "none") == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "bad", [([1.0, 2.0], "inverse"), ([1.0, -2.0], "paper"), ([math.nan], "sqrt")]
)
def test_class_weights_refuse(bad):
    with pytest.raises(UserError, match="remedy"):
        class_weights(*bad)


def test_unknown_form_is_refused():
    logits, label, known = batch()
    with pytest.raises(UserError, match=r"loss\.form"):
        segmentation_loss(logits, label, known, Loss(form="sigmoid"))


# --- numerics ------------------------------------------------------------------------------


def test_computed_in_float32_under_autocast():
    logits, label, known = batch(dtype=torch.float32)
    half = logits.detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = segmentation_loss(half, label, known, Loss(dice=1.0))
    want = segmentation_loss(half.float(), label, known, Loss(dice=1.0))
    assert got.total.dtype == torch.float32
    assert got.total.item() == want.total.item()


def test_sums_do_not_drift_over_a_large_volume():
    label = torch.full((1, 96, 128, 224), 255, dtype=torch.uint8)
    log_p = torch.full(label.shape, math.log(0.9))
    for value, one in zip(
        class_sums(log_p, label, 2.0),
        (-math.log(0.9), -math.log(0.9) * 0.01, 0.9, 0.9),
        strict=True,
    ):
        assert value.item() == pytest.approx(one * label.numel(), rel=2e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_sums_have_the_right_gradients(gamma):
    log_p = torch.randn(3, 2, 3, 2, dtype=torch.float64).log_softmax(0).requires_grad_()
    soft = torch.randint(0, 256, (3, 2, 3, 2), dtype=torch.uint8)
    hard = (
        torch.nn.functional.one_hot(torch.randint(0, 3, (2, 3, 2)), 3).movedim(-1, 0).byte() * 255
    )
    for shares in (soft, hard):
        assert torch.autograd.gradcheck(lambda x, q=shares: class_sums(x, q, gamma), log_p)


def test_extreme_logits_give_finite_values_and_gradients():
    logits, label, known = batch(dtype=torch.float32)
    with torch.no_grad():
        logits *= 1e4
    for form in ("categorical", "one_vs_rest"):
        got = segmentation_loss(logits, label, known, Loss(form=form, dice=1.0, gamma=1.5))
        assert got.total.isfinite()
        assert grad(got.total, logits).isfinite().all()


def test_keeps_no_map_of_floats_but_one():
    """Autograd keeps the log-probabilities once, and the shares as bytes."""
    logits, label, known = batch(cases=1, organs=9, shape=(8, 8, 10), dtype=torch.float32)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        total = segmentation_loss(logits, label, known, Loss()).total
    voxel_map = 8 * 8 * 10 * 4
    assert 10 * voxel_map < sum(kept.values()) < 14 * voxel_map
    assert total.requires_grad


def test_what_the_loss_returns_is_what_the_plan_names() -> None:
    assert tuple(f.name for f in dataclasses.fields(LossTerms)) == LOSSES


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    size=st.integers(1, 4),
    form=st.sampled_from(["categorical", "one_vs_rest", "prediction"]),
    background=st.booleans(),
    known=st.lists(st.booleans(), min_size=5 * C, max_size=5 * C),
)
def test_the_parts_of_a_batch_add_up_to_it(
    seed: int, size: int, form: str, background: bool, known: list[bool]
) -> None:
    logits, label, _ = batch(seed, cases=5)
    annotated = torch.tensor(known).reshape(5, C)
    label = torch.where(annotated.any(dim=1).reshape(-1, 1, 1, 1), label, 0)
    config = Loss(ce=1.0, focal=0.5, dice=1.0, gdice=0.7, form=form, dice_background=background)
    classes: list[float] | None = [0.1, 0.4, 0.3, 0.2]
    if form == "prediction":
        config, classes = dataclasses.replace(config, form="one_vs_rest", class_weight=form), None
    weights = LossWeights(classes, [1.0, 3.0, 0.5], {"focal": 2.0})
    together = segmentation_loss(logits, label, annotated, config, weights)
    whole = denominators(label, annotated, config, weights).double()
    parts = [
        segmentation_loss(*(x[i : i + size] for x in (logits, label, annotated)), config, weights,
                          whole)
        for i in range(0, 5, size)
    ]  # fmt: skip
    for name in LOSSES:
        added = sum(getattr(part, name) for part in parts)
        torch.testing.assert_close(added, getattr(together, name), rtol=1e-6, atol=1e-9)
    total = sum(part.total for part in parts)
    torch.testing.assert_close(
        grad(total, logits), grad(together.total, logits), rtol=1e-6, atol=1e-9
    )
