"""A site's own page of a run: made at its kit, of what it keeps, for its account alone."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from core.files import private_folder, replace_csv, replace_file
from core.plan.load import plan_hash
from core.plan.schema import Federation, Phase, Plan
from hnfed.cli.main import main
from hnfed.deploy.provision import Federation as Roster
from hnfed.deploy.provision import provision
from hnfed.guard import pins
from hnfed.guard.receipts import Chain, write_receipt
from tests.browser import needs_browser, opened, overflow, violations
from tests.hnfed.report.test_page import HOSTILE, Page, png

ORGANS = ["Brainstem", "Parotid_L"]
COLUMNS = ("case", "organ", "dice", "hd95_mm", "volume_ml", "predicted_ml", "surface_dice_2mm")
FINDING = ("code", "severity", "case", "organ", "message", "remedy")


def plan_of(**federation: Any) -> Plan:
    shared = Phase(name="pretrain", sites=["nyu", "miccai"], organs=ORGANS, rounds=2)
    own = Phase(name="own", sites=["nyu"], organs=["Larynx"], rounds=1, init="pretrain",
                freeze="encoder", share="none")  # fmt: skip
    other = Phase(name="theirs", sites=["miccai"], organs=["Larynx"], rounds=1)
    return Plan(phases=[shared, own, other], federation=Federation(**federation))


def sums(*dice: float) -> dict[str, list[float]]:
    fields = {"n": 2.0, "detected": 2.0, "hd95_mm": 8.0, "penalised_mm": 8.0}
    found = {f"val.{name}": [value] * len(dice) for name, value in fields.items()}
    return found | {"val.dice": [2 * value for value in dice]}


class Place:
    """A kit, a site file, and a state folder with a run that two orders of a phase were part of."""

    def __init__(self, folder: Path) -> None:
        provision(Roster("hn", "127.0.0.1", 28443, 28444, ("nyu", "miccai"), 30), folder / "kits")
        self.kit, self.state = folder / "kits" / "nyu", folder / "state"
        private_folder(self.state)
        (self.state / "secret").write_bytes(b"s" * 32)
        self.site_file = folder / "nyu.yaml"
        text = f"name: nyu\nroot: {folder}/a\ncache: {folder}/cache\nstate: {self.state}\n"
        self.site_file.write_text(text)

    def leaves(self, run: str, kind: str, phase: str = "", round_: int = 0, **told: Any) -> None:
        config = {"site": "nyu", "run": run, "phase": phase, "round": round_,
                  "code": told.pop("code", "OK")}  # fmt: skip
        metrics = {"cases": 6, "steps": 9, "skipped": 0, "seconds": 41.0, "startup": 1.0, **told}
        private_folder(self.state / run)
        write_receipt(Chain(self.state), run, kind, config, metrics, {})

    def pin(self, run: str, plan: Plan) -> None:
        pins.keep(self.state / "guard", run, pins.Pin(plan_hash(plan), left_out={"E_NO_BODY": 1}))
        pins.keep_plan(self.state / "guard", plan)

    def tests(self, run: str, phase: str, organs: list[str]) -> Path:
        folder = self.state / run / phase
        (folder / "overlays").mkdir(parents=True)
        rows = [(f"DOE_{i}", o, 0.9 - 0.1 * i, "" if i == 4 else 3.5, 10.0, 0.0 if i == 4 else 9.0,
                 0.8) for o in organs for i in range(5)]  # fmt: skip
        replace_csv(folder / "cases.csv", COLUMNS, rows)
        (folder / "overlays" / f"001_{organs[0]}_worst_0.500.png").write_bytes(png())
        return folder

    def whole(self, run: str = "r-1") -> None:
        """A run that came to its end here."""
        self.pin(run, plan_of())
        self.leaves(run, "query")
        for round_ in (1, 2):
            loss = [2.0 / round_, 1.0, 0.5, 0.0, 0.5]
            dice = sums(0.3 * round_, 0.2)
            self.leaves(run, "train", "pretrain", round_, loss=loss, **dice)
        self.leaves(run, "error", "pretrain", 2, code="E_POLICY")
        self.tests(run, "pretrain", ORGANS)
        (self.tests(run, "own", ["Larynx"]) / "best.safetensors").write_bytes(b"weights")
        found = [("E_NO_BODY", "error", "DOE_9", "", "no body found", "look at the CT")]
        replace_csv(self.state / run / "findings.csv", FINDING, found)

    def report(self, *more: str) -> int:
        return main(["report", str(self.kit), "--site", str(self.site_file), *more])


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def words(path: Path) -> str:
    return " ".join(" ".join(Page(path).words).split())


def test_a_sites_own_page_has_its_cases_and_answers_its_questions(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.whole()
    assert place.report() == 0
    path = place.state / "r-1" / "report-local.html"
    assert capsys.readouterr().out.strip() == str(path)
    text = words(path)
    for sentence in (
        "For this site alone",
        "learnt 2 organs on training cases of nyu, together with miccai",
        "own: ",
        "Its weights stay at the site.",
        "DOE_4",  # the worst case by name
        "4 replies left",
        "The weights of own stayed.",
        "1 orders refused (E_POLICY: the site's policy.yaml does not allow the plan",
        "no body found",
        "DOE_9",
        f"hnfed predict -i CT -o contours --model {place.state / 'r-1'} --preview --phase own",
        f"hnfed receipts {place.kit} --site {place.site_file} --verify",
        f"hnfed check ARCHIVE --site {place.site_file}",
        "0 B of weights, counts of cases, losses and sums of scores over the cases",
        "median",
    ):
        assert sentence in text, sentence
    assert "phase-3" not in Page(path).ids, "of the other site alone"
    assert "0.700" in text, "mean Dice of its own cases, however few"
    assert "withheld" not in text
    page = Page(path)
    assert [tag for tag, name, _ in page.links if (tag, name) == ("img", "src")] == ["img"] * 2
    assert not any(value.startswith(("http", "file", "/")) for _, _, value in page.links)
    assert "Validation Dice" in text
    assert page.source.count('class="dot') >= 15


def test_it_is_for_its_account_alone_and_nothing_else_is_written(place: Place) -> None:
    place.whole()
    before = set(place.state.parent.rglob("*"))
    os.umask(0o022)
    assert place.report() == 0
    made = set(place.state.parent.rglob("*")) - before
    path = place.state / "r-1" / "report-local.html"
    assert made == {path}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_run_that_came_last_or_the_one_asked_for(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    for run in ("r-2", "r-1"):
        place.pin(run, plan_of())
        place.leaves(run, "query")
    assert place.report() == 0
    assert "r-1/report-local.html" in capsys.readouterr().out
    assert place.report("--run", "r-2") == 0
    assert "not been tested here" in words(place.state / "r-2" / "report-local.html")
    assert place.report("--run", "r-3") == 1
    assert "choose one of r-2, r-1" in capsys.readouterr().err


def test_a_site_without_a_run_and_a_kit_without_a_site_file(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.report() == 1
    assert "no run has left anything at this site yet" in capsys.readouterr().err
    assert main(["report", str(place.kit)]) == 1
    assert "--site SITE.yaml" in capsys.readouterr().err
    assert main(["report", str(tmp_path), "--site", str(place.site_file)]) == 1
    assert "is no kit" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "kits" / "server")]) == 1
    assert "this kit is for server" in capsys.readouterr().err


def test_masked_replies_leave_no_curve_and_the_page_says_so(place: Place) -> None:
    place.pin("r-1", plan_of(secure_aggregation=True))
    place.leaves("r-1", "train", "pretrain", 1, masked=[1.0, 2.0])
    place.tests("r-1", "pretrain", ORGANS)
    assert place.report() == 0
    text = words(place.state / "r-1" / "report-local.html")
    assert "only sums over the sites can be read" in text
    assert "No curves: losses and scores of the rounds left masked" in text


def test_without_the_plan_the_tests_are_still_told(place: Place) -> None:
    place.leaves("r-1", "train", "pretrain", 1)
    place.tests("r-1", "pretrain", ORGANS)
    assert place.report() == 0
    text = words(place.state / "r-1" / "report-local.html")
    assert "the plan of this run was not kept" in text
    assert "Parotid_L" in text


def test_what_the_code_of_a_run_wrote_is_shown_as_text_and_links_are_not_followed(
    place: Place,
) -> None:
    """The run's folder is where the approved code writes."""
    place.whole()
    folder = place.state / "r-1"
    replace_csv(
        folder / "pretrain" / "cases.csv", COLUMNS, [(HOSTILE, "Brainstem", 0.5, 3.5, 1, 1, 1)]
    )
    (folder / "own" / "cases.csv").unlink()
    (folder / "own" / "cases.csv").symlink_to(place.kit / "node.key")
    (folder / "findings.csv").unlink()
    (folder / "findings.csv").symlink_to(place.kit / "node.key")
    (folder / "report-local.html").symlink_to(place.site_file)
    before = place.site_file.read_text()
    assert place.report() == 0
    page = Page(folder / "report-local.html")
    assert "script" not in page.tags
    assert page.handlers == []
    assert "OPENSSH" not in page.source
    assert place.site_file.read_text() == before
    assert not (folder / "report-local.html").is_symlink()


def test_a_kit_from_elsewhere_makes_nothing_where_no_client_worked(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder with kit.json and site.yaml chose where a state folder and a page were made."""
    place.whole()
    (place.state / "secret").unlink()
    before = set(tmp_path.rglob("*"))
    assert place.report() == 1
    assert "no client has worked with it" in capsys.readouterr().err
    text = place.site_file.read_text()
    place.site_file.write_text(text.replace(f"state: {place.state}", f"state: {tmp_path}/new"))
    assert place.report() == 1
    assert set(tmp_path.rglob("*")) == before


def test_a_runs_folder_that_is_a_link_gets_no_page(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place.whole()
    (place.state / "r-1").rename(tmp_path / "other")
    (place.state / "r-1").symlink_to(tmp_path / "other")
    assert place.report() == 1
    assert "no run has left anything" in capsys.readouterr().err
    assert not (tmp_path / "other" / "report-local.html").exists()


def test_one_line_of_a_runs_folder_does_not_keep_the_page_from_being_made(place: Place) -> None:
    place.whole()
    (place.state / "r-1" / "receipts.jsonl").write_text('{"scalars": {}, "n": "x"}\n')
    assert place.report() == 0


def test_a_damaged_pin_is_named(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.whole()
    replace_file(place.state / "guard" / "runs" / "r-1.json", json.dumps({"x": 1}))
    assert place.report() == 1
    assert "r-1.json" in capsys.readouterr().err


@needs_browser
def test_in_a_browser_it_fits_and_reads(place: Place) -> None:
    place.whole()
    assert place.report() == 0
    path = place.state / "r-1" / "report-local.html"
    for width, scheme in ((390, "light"), (1280, "dark")):
        with opened(path, width, scheme) as page:
            assert overflow(page) <= 0
            assert violations(page) == []
