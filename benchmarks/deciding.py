"""The deciding experiment: its cells in one file, its analysis, and the power that it has.

python -m benchmarks.deciding collect runs/deciding docs/results/deciding.json
python -m benchmarks.deciding analyse docs/results/deciding.json
python -m benchmarks.deciding power docs/results/deciding-pilot.json --figure FIGURE.svg
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.deciding_cells import Cell, cells_of, collect, read, write
from benchmarks.deciding_statistics import Floats, Scatter, judged, power, scatter, speed
from core.errors import UserError
from core.text import aligned

REFERENCE, PRIMARY = "scratch", "frozen"
TUNED_ON = ("0", 0)  # fold and seed where learning rates are chosen
POINTS = (96, 336, 672)  # steps of the table
SIZES, SEEDS = (11, 11, 11, 10), 3
LOOKS = (("#333333", "-"), ("#0b5fa5", "-"), ("#b3401f", "--"), ("#2b7a3d", "-."), ("#7a4fa3", ":"))
EFFECTS = tuple(i / 200 for i in range(17))  # of Dice


def rates(cells: Iterable[Cell]) -> dict[str, str]:
    """The learning rate of each arm: the best validation Dice after the last step, fold 0, seed 0.

    Of equals the first; an arm without several has the one that it has.
    """
    found: dict[str, dict[str, float]] = {}
    for cell in sorted(cells, key=lambda c: (c.arm, c.lr)):
        known = found.setdefault(cell.arm, {})
        if (cell.fold, cell.seed) == TUNED_ON and cell.val is not None:
            known[cell.lr] = cell.val
        else:
            known.setdefault(cell.lr, -1.0)
    return {arm: max(values, key=lambda lr: values[lr]) for arm, values in found.items()}


def table(
    cells: Sequence[Cell], arms: Sequence[str], *, without: Sequence[str] = ()
) -> tuple[dict[str, Floats], list[str], list[int], list[int]]:
    """Dice of the arms on the same patients and seeds.

    Only folds and seeds that every arm has go in; of the seeds those that every fold has.

    Args:
        cells: of the arms' own learning rates.
        arms: that are compared.
        without: folds to leave out.

    Returns:
        By arm (patients, seeds, steps), mean of the organs; the patients' folds; seeds; steps.

    Raises:
        UserError: the arms have no fold and seed in common.
    """
    known = {(c.arm, c.fold, c.seed): c for c in cells if c.arm in arms and c.fold not in without}
    seeds = sorted({s for _, _, s in known})
    folds = sorted({f for _, f, _ in known})

    def whole(fold: str) -> list[int]:
        return [s for s in seeds if all((arm, fold, s) in known for arm in arms)]

    folds = [fold for fold in folds if whole(fold)]
    seeds = [s for s in seeds if folds and all(s in whole(fold) for fold in folds)]
    if not seeds:
        remedy = "wait until each of these arms has a cell of the same fold and seed"
        raise UserError("cells", ", ".join(arms), remedy, problem="nothing to compare yet")
    steps = sorted(set.intersection(*(set(c.test) for c in known.values())))
    of: list[str] = []
    parts: dict[str, list[Floats]] = {arm: [] for arm in arms}
    for fold in folds:
        cases = known[arms[0], fold, seeds[0]].cases
        of += [fold] * len(cases)
        for arm in arms:
            for s in seeds:
                if known[arm, fold, s].cases != cases:
                    remedy = "leave out cells of another split"
                    raise UserError(f"cell {arm}, fold {fold}", s, remedy, problem="other patients")
            rows = [[known[arm, fold, s].test[k].mean(axis=1) for k in steps] for s in seeds]
            parts[arm].append(np.array(rows).transpose(2, 0, 1))
    return {arm: np.concatenate(p) for arm, p in parts.items()}, of, seeds, steps


def analysis(cells: Sequence[Cell]) -> str:
    """The whole analysis in words: learning rates, curves, the primary test, speed."""
    chosen = rates(cells)
    arms = _of_arms(cells, chosen)
    used = [c for own in arms.values() for c in own]
    lines = [f"learning rates, chosen on validation (fold 0, seed 0): {_words(chosen)}", ""]
    organs = used[0].organs
    head = ("arm", "cells", *(f"after {k}" for k in POINTS), *organs)
    rows: list[tuple[str, ...]] = [head]
    for arm, own in arms.items():
        dice = _mean_curve(own)
        curve = (f"{dice[k].mean():.3f}" if k in dice else "-" for k in POINTS)
        last = [f"{d:.3f}" for d in dice[max(dice)]] if dice else ["-"] * len(organs)
        rows.append((arm, str(len(own)), *curve, *last))
    lines += [aligned(rows, words=1), f"(organs: after {max(used[0].test)} steps)", ""]
    for arm in sorted(set(arms) - {REFERENCE}, key=lambda a: (a != PRIMARY, a)):
        lines += _compared(used, arm, REFERENCE, primary=arm == PRIMARY)
    if "frozen-federated" in arms and PRIMARY in arms:
        lines += _compared(used, "frozen-federated", PRIMARY, primary=False)
    return "\n".join(lines)


def _words(chosen: Mapping[str, str]) -> str:
    return ", ".join(f"{arm} {lr or 'as given'}" for arm, lr in chosen.items())


def _mean_curve(cells: Sequence[Cell]) -> dict[int, Floats]:
    """Mean over patients of the mean over that patient's cells: steps -> Dice by organ."""
    found: dict[int, dict[str, list[Floats]]] = {}
    for cell in cells:
        for k, dice in cell.test.items():
            for case, row in zip(cell.cases, dice, strict=True):
                found.setdefault(k, {}).setdefault(case, []).append(row)
    return {
        k: np.mean([np.mean(rows, axis=0) for rows in of.values()], axis=0)
        for k, of in found.items()
    }


def _of_arms(cells: Sequence[Cell], chosen: Mapping[str, str]) -> dict[str, list[Cell]]:
    """The cells of each arm's own learning rate, the reference first."""
    arms = [REFERENCE, *sorted({c.arm for c in cells} - {REFERENCE})]
    return {arm: [c for c in cells if (c.arm, c.lr) == (arm, chosen[c.arm])] for arm in arms}


def _rows_of(folds: Sequence[str]) -> dict[str, list[int]]:
    """Fold -> the rows of its patients."""
    return {f: [i for i, g in enumerate(folds) if g == f] for f in dict.fromkeys(folds)}


def _compared(cells: Sequence[Cell], arm: str, other: str, *, primary: bool) -> list[str]:
    """Lines on one arm against another; speed against scratch alone."""
    lines = [f"{'PRIMARY: ' if primary else ''}{arm} - {other}"]
    for without in ((), ("0",)):
        try:
            dice, folds, seeds, steps = table(cells, (arm, other), without=without)
        except UserError as error:
            lines.append(f"  {'without fold 0: ' if without else ''}{error.problem}")
            break
        last = steps[-1]
        result = judged((dice[arm] - dice[other])[:, :, -1].mean(axis=1), folds)
        scope = "without fold 0" if without else f"folds {', '.join(dict.fromkeys(folds))}"
        by_fold = "not known below three folds"
        if result.fold_low is not None and result.fold_high is not None:
            by_fold = f"{result.fold_low:+.3f} to {result.fold_high:+.3f}, p {result.fold_p:.4f}"
        lines += [
            f"  {scope}, {len(seeds)} seeds, {result.patients} patients, after {last} steps: "
            f"{result.mean:+.4f} ({result.low:+.3f} to {result.high:+.3f})",
            f"    permutation within folds: p {result.p:.4f}; a fold as one draw: {by_fold}",
            f"    {result.verdict}",
        ]
        if not without:
            lines.append(f"    by fold: {_by_fold(dice[arm] - dice[other], folds, seeds)}")
        if other == REFERENCE and not without:
            fast = speed(dice[arm], dice[other], steps, folds)
            lines.append(
                f"  steps to 95 % of the plateau of scratch: {fast.steps:.0f} against "
                f"{fast.scratch:.0f}, ratio {fast.ratio:.2f} ({fast.low:.2f} to {fast.high:.2f}), "
                f"not reached in {fast.missed:.0%} of the resamples"
            )
    if not _complete(cells, (arm, other)):
        lines.append(f"  PRELIMINARY: not all of {len(SIZES)} folds x {SEEDS} seeds are there")
    return [*lines, ""]


def _by_fold(differences: Floats, folds: Sequence[str], seeds: Sequence[int]) -> str:
    """Mean difference of each fold's patients after the last step, one figure a seed."""
    told = []
    for fold, of in _rows_of(folds).items():
        means = differences[of, :, -1].mean(axis=0)
        told.append(f"{fold} ({', '.join(f'{m:+.3f}' for m in means)})")
    return f"{', '.join(told)}; seeds {', '.join(map(str, seeds))}"


def _complete(cells: Sequence[Cell], arms: Sequence[str]) -> bool:
    pairs = {(c.arm, c.fold, c.seed) for c in cells}
    return all(sum(a == arm for a, _, _ in pairs) >= len(SIZES) * SEEDS for arm in arms)


def pilot(cells: Sequence[Cell]) -> Scatter:
    """Scatter of the pilot's differences after its last step; their mean is not looked at."""
    dice, folds, _, _ = table(cells, (PRIMARY, REFERENCE))
    differences = (dice[PRIMARY] - dice[REFERENCE])[:, :, -1]
    return scatter([differences[of] for of in _rows_of(folds).values()])


def powers(of: Scatter) -> list[tuple[float, float, float]]:
    """Effect, and the power of the permutation and of the test by folds."""
    return [(effect, *power(of, effect, SIZES, SEEDS)) for effect in EFFECTS]


def power_text(of: Scatter, found: Sequence[tuple[float, float, float]]) -> str:
    """The table, and which effects are found by 8 studies of 10."""
    head = ("true difference", "permutation within folds", "a fold as one draw")
    rows = [(f"{e:.3f}", f"{p:.2f}", f"{q:.2f}") for e, p, q in found]
    enough = [
        next((f"{row[0]:.3f}" for row in found if row[i] >= 0.8), "more than all of these")
        for i in (1, 2)
    ]
    return "\n".join(
        [
            f"standard deviations: patient {of.patient:.3f}, pair of networks {of.model:.3f}, "
            f"rest {of.rest:.3f}, fold {of.fold:.3f}",
            aligned([head, *rows], words=0),
            f"power 0.8 from a difference of {enough[0]} (permutation), {enough[1]} (folds)",
        ]
    )


def draw(of: Scatter, found: Sequence[tuple[float, float, float]], path: Path) -> None:
    """The figure: power by true difference, both tests."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    effects = [e for e, _, _ in found]
    axes.plot(effects, [p for _, p, _ in found], color="#0b5fa5", label="permutation within folds")
    axes.plot(effects, [q for *_, q in found], "--", color="#b3401f", label="a fold as one draw")
    axes.axhline(0.8, color="0.6", linewidth=0.8)
    axes.axhline(0.05, color="0.6", linewidth=0.8)
    axes.set(
        xlabel="true difference of mean Dice, frozen encoder - scratch",
        ylabel="share of studies with p < 0.05",
        ylim=(0, 1.02),
        xlim=(0, effects[-1]),
        title=f"43 patients, 4 folds, 3 seeds; SD patient {of.patient:.3f}, networks "
        f"{of.model:.3f}, rest {of.rest:.3f}, fold {of.fold:.3f}",
    )
    _save(figure, axes, path)


def draw_curves(cells: Sequence[Cell], path: Path) -> None:
    """The figure of the analysis: test Dice by steps, an arm a colour, a cell a thin line."""
    from matplotlib.figure import Figure

    chosen = rates(cells)
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.add_subplot()
    for (arm, own), look in zip(_of_arms(cells, chosen).items(), LOOKS, strict=False):
        colour, dashes = look
        for cell in own:
            axes.plot(*_line(cell.test), color=colour, alpha=0.15, linewidth=0.7)
        label = f"{arm} ({chosen.get(arm) or 'as given'})"
        axes.plot(*_line(_mean_curve(own)), dashes, color=colour, label=label)
    axes.set(
        xlabel="training steps on 12 cases",
        ylabel="test Dice, mean of Larynx and Esophagus",
        title="thick: mean over patients; thin: one network; in brackets its learning rate",
    )
    _save(figure, axes, path)


def _line(dice: Mapping[int, Floats]) -> tuple[list[int], list[float]]:
    """Steps in order, and the mean Dice at each."""
    steps = sorted(dice)
    return steps, [float(dice[k].mean()) for k in steps]


def _save(figure: Any, axes: Any, path: Path) -> None:
    """Writes a figure the same way each time."""
    axes.title.set_fontsize(9)
    axes.legend(frameon=False, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("collect", help="the finished cells of a folder into one file")
    one.add_argument("folder", type=Path, help="of `hnfed grid deciding`")
    one.add_argument("file", type=Path, help="cells that it holds already and FOLDER does not stay")
    two = commands.add_parser("analyse", help="the primary result and all others")
    two.add_argument("results", type=Path, help="a file of `collect`, or the folder")
    two.add_argument("--figure", type=Path, help="draw test Dice by steps")
    three = commands.add_parser("power", help="power by simulation, from a pilot's scatter")
    three.add_argument("pilot", type=Path, nargs="?", help="a file of `collect`, or the folder")
    three.add_argument(
        "--scatter",
        type=float,
        nargs=3,
        metavar=("PATIENT", "MODEL", "REST"),
        help="standard deviations, instead of a pilot",
    )
    text = "standard deviation of a fold's own effect, which a pilot of two folds cannot tell (0)"
    three.add_argument("--fold", type=float, default=0.0, metavar="SD", help=text)
    three.add_argument("--figure", type=Path, help="draw it")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    if options.command == "collect":
        content = collect(options.folder, read(options.file) if options.file.is_file() else None)
        write(options.file, content)
        print(f"{len(content['cells'])} cells in {options.file}")
    elif options.command == "analyse":
        cells = list(cells_of(read(options.results)))
        print(analysis(cells))
        if options.figure:
            draw_curves(cells, options.figure)
    else:
        if (options.pilot is None) == (options.scatter is None):
            raise UserError("power", options.pilot, "give a pilot, or --scatter, and not both")
        known = pilot(list(cells_of(read(options.pilot)))) if options.pilot else None
        known = known or Scatter(*options.scatter)
        known = Scatter(known.patient, known.model, known.rest, options.fold)
        found = powers(known)
        print(power_text(known, found))
        if options.figure:
            draw(known, found, options.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
