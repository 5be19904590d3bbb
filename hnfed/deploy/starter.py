"""`hnfed init`: a site file, a plan or a federation file from a few questions, each with a default.

What is written is read once by what will read it later; nothing that is there is overwritten.
"""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import yamltext
from core.archives.formats.table import FORMATS
from core.errors import UserError
from core.identifiers import site_name
from core.organs.vocabulary import require_known, vocabulary
from core.plan.load import load
from core.plan.validate import require_simulated
from core.text import shown
from core.training.ranks import numbers_in
from hnfed.deploy.provision import kit_name, read_federation
from hnfed.deploy.site_file import site_from_file
from hnfed.guard.kit import HOST, NAME

Answers = dict[str, str]
Ask = Callable[[str], str]
SHARED = ["Brainstem", "Bone_Mandible", "Parotid_L", "Parotid_R"]
FEWEST_FOR_SUMS = 3  # sites of a federation whose updates may leave as sums alone
PHANTOMS = ("nyu", "miccai")
NONE = "none"


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        key: by which it is answered beforehand: KEY=VALUE.
        text: for a person.
        default: from the answers so far.
        require: tells what is wrong with an answer by a `UserError`.
        asked: whether it matters after the answers so far.
    """

    key: str
    text: str
    default: Callable[[Answers], str]
    require: Callable[[str], object]
    asked: Callable[[Answers], bool] = lambda answers: True


@dataclass(frozen=True)
class Starter:
    """What `hnfed init` can write.

    Attributes:
        file: its usual name.
        questions: in order.
        made: the text of the file from all answers.
        check: reads it as it will be read later; `UserError` where it cannot be.
        next: the commands that follow.
    """

    file: str
    questions: Sequence[Question]
    made: Callable[[Answers], str]
    check: Callable[[Path], object]
    next: Callable[[Path, Answers], list[str]]


def start(kind: str, given: Mapping[str, str], out: Path | None, ask: Ask | None) -> list[str]:
    """Asks, writes the file, and says what comes next.

    Args:
        kind: a key of `STARTERS`.
        given: answers beforehand.
        out: the file; by default its usual name, here.
        ask: puts a question and returns what was typed; None takes the defaults.

    Returns:
        Lines for the person: the file, and the next commands.

    Raises:
        UserError: a file stands there, an answer is not usable, or an unknown key was given.
    """
    starter = STARTERS[kind]
    path = out or Path(starter.file)
    if path.exists():
        raise UserError("-o", path, "give another name: -o FILE", problem="it is there already")
    known = [question.key for question in starter.questions]
    for key in given:
        if key not in known:
            raise UserError(
                key, given[key], f"use one of {', '.join(known)}", problem="no question"
            )
    answers: Answers = {}
    for question in starter.questions:
        answers[question.key] = _answer(question, answers, given, ask)
    text = starter.made(answers)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / path.name
        draft.write_text(text, encoding="utf-8")
        starter.check(draft)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        problem = "it is there already"
        raise UserError("-o", path, "give another name: -o FILE", problem=problem) from None
    return [f"written: {path}", "next:", *(f"  {line}" for line in starter.next(path, answers))]


def _answer(question: Question, answers: Answers, given: Mapping[str, str], ask: Ask | None) -> str:
    """The answer given beforehand, typed, or the default; a wrong one is asked for again."""
    default = question.default(answers)
    if question.key in given:
        question.require(given[question.key])
        return given[question.key]
    if ask is None or not question.asked(answers):
        if question.asked(answers):
            question.require(default)
        return default
    while True:
        typed = ask(f"{question.text} [{default}]: ").strip() or default
        try:
            question.require(typed)
        except UserError as error:
            print(f"  {shown(error.problem or f'{typed} cannot be used')}: {shown(error.remedy)}")
            continue
        return typed


def listed(text: str) -> list[str]:
    """Names, with commas or blanks between them."""
    return [part for part in re.split(r"[,\s]+", text.strip("[] ")) if part]


def _one_of(field: str, *allowed: str) -> Callable[[str], object]:
    def require(value: str) -> None:
        if value not in allowed:
            raise UserError(field, value, f"use one of {', '.join(allowed)}")

    return require


def _whole(field: str, least: int, most: int) -> Callable[[str], object]:
    def require(value: str) -> None:
        if not value.isdecimal() or not least <= int(value) <= most:
            raise UserError(field, value, f"give a whole number from {least} to {most}")

    return require


def _folder(value: str) -> None:
    if not Path(value).expanduser().is_dir():
        raise UserError("root", value, "give the folder of the archive: root=DIR",
                        problem="no such folder")  # fmt: skip


def _place(value: str) -> None:
    if not value or "\0" in value:
        raise UserError("folder", value, "give the path of a folder")


def _shares(value: str) -> None:
    """Percent for training, validation and test."""
    parts = value.split("/")
    if len(parts) != 3 or not all(p.isdecimal() for p in parts) or sum(map(int, parts)) != 100:
        raise UserError("split", value, "give three whole percentages that make 100: 64/16/20")
    if min(map(int, parts)) < 1:
        raise UserError("split", value, "leave each of the three at least 1 %")


def _device(value: str) -> None:
    numbers_in(value, "device")


def _sites(value: str) -> None:
    names = [site_name(name, "sites") for name in listed(value)]
    if not names or len(set(names)) < len(names):
        raise UserError("sites", value, "name each site once: site_a, site_b")


def _kits(value: str) -> None:
    _sites(value)
    for name in listed(value):
        kit_name(name, "sites")


def _organs(value: str) -> None:
    if not listed(value):
        raise UserError("organs", value, f"give TG-263 names: {', '.join(SHARED)}")
    require_known(listed(value), vocabulary(), "organs")


def _own_organs(value: str) -> None:
    if value != NONE:
        _organs(value)


def _name(value: str) -> None:
    if not NAME.fullmatch(value):
        raise UserError("name", value, "use small letters, digits, - and _, the first a letter")


def _host(value: str) -> None:
    if not HOST.fullmatch(value):
        raise UserError("host", value, "give the name or IP that sites dial")


def _data(value: str) -> None:
    if value != "phantom":
        _folder(value)


def _absolute(text: str) -> str:
    return str(Path(text).expanduser().absolute())


def _fixed(text: str) -> Callable[[Answers], str]:
    return lambda answers: text


def _site_text(answers: Answers) -> str:
    train, val, test = (int(part) / 100 for part in answers["split"].split("/"))
    values = {
        "name": answers["name"],
        "root": _absolute(answers["root"]),
        "format": answers["format"],
        "split": {"train": train, "val": val, "test": test, "seed": 0},
        "device": answers["device"],
        "cache": _absolute(answers["cache"]),
        "state": _absolute(answers["state"]),
    }
    return (
        "# A site file (docs/deployment.md#a-site). Names of structures that hnfed does not know:\n"
        '# aliases: {Parotid_L: ["Lt Parotid"]}\n' + yamltext.dump(values)
    )


def _check_site(draft: Path) -> None:
    """Reads the draft as a site file; a state folder that is not there yet is not made."""
    values = yamltext.parse(draft.read_text(encoding="utf-8"))
    if not Path(values["state"]).is_dir():
        values["state"] = str(draft.parent / "state")
    draft.write_text(yamltext.dump(values), encoding="utf-8")
    site_from_file(draft, "check")


def _site_next(path: Path, answers: Answers) -> list[str]:
    place, root = shlex.quote(str(path)), shlex.quote(_absolute(answers["root"]))
    return [
        f"hnfed check {root} --site {place}    # what of it can be used",
        f"hnfed doctor --role site --site {place}    # is this machine ready",
        f"hnfed join KIT --name {answers['name']}    # to take part in a federation",
    ]


def _plan_text(answers: Answers) -> str:
    sites, organs = listed(answers["sites"]), listed(answers["organs"])
    rounds = int(answers["rounds"])
    phases: list[dict[str, Any]] = [
        {"name": "pretrain", "sites": sites, "organs": organs, "rounds": rounds, "init": "scratch"}
    ]
    if answers["own"] != NONE:
        if answers["own_site"] not in sites:
            raise UserError("own_site", answers["own_site"], f"use one of {', '.join(sites)}")
        phases.append({
            "name": "personalise", "sites": [answers["own_site"]], "organs": listed(answers["own"]),
            "rounds": rounds, "init": "pretrain", "freeze": "encoder", "share": "none",
        })  # fmt: skip
    values: dict[str, Any] = {"phases": phases}
    if answers["where"] == "federation":
        values["federation"] = {"secure_aggregation": answers["sums"] == "yes"}
    elif answers["data"] == "phantom":
        values |= {
            "preprocess": {"spacing_mm": [4.0, 3.0, 3.0], "crop": [56, 48, 56]},
            "model": {"channels": [8, 32, 64, 64]},
            "simulation": {
                "phantom_spacing_mm": [4.0, 3.0, 3.0],
                "sites": {
                    s: {"phantom": PHANTOMS[i % 2], "cases": 12} for i, s in enumerate(sites)
                },
            },
        }
    else:
        root = Path(_absolute(answers["data"]))
        values["simulation"] = {"sites": {site: {"root": str(root / site)} for site in sites}}
    return "# A plan (docs/plans.md); every other key has its default.\n" + yamltext.dump(values)


def _check_plan(draft: Path) -> None:
    resolved, _ = load(str(draft), [])
    if resolved.simulation.sites:
        require_simulated(resolved)


def _plan_next(path: Path, answers: Answers) -> list[str]:
    place = shlex.quote(str(path))
    if answers["where"] == "federation":
        return [
            f"hnfed config show {place}    # every key, and where its value comes from",
            f"hnfed run {place} --server kits/server    # once `hnfed server` runs",
        ]
    return [f"hnfed simulate {place}", f"hnfed watch runs/{path.stem}    # from another terminal"]


def _federation_text(answers: Answers) -> str:
    values = {
        "name": answers["name"],
        "server": {"host": answers["host"], "port": int(answers["port"]),
                   "internal_port": int(answers["port"]) + 1},
        "sites": listed(answers["sites"]),
        "keys": "site",
        "days": int(answers["days"]),
    }  # fmt: skip
    return "# A federation (docs/deployment.md#the-coordinator).\n" + yamltext.dump(values)


def _federation_next(path: Path, answers: Answers) -> list[str]:
    first = listed(answers["sites"])[0]
    return [
        f"hnfed provision {shlex.quote(str(path))} -o kits",
        f"hnfed join hn --name {first}    # at each site: its request, for you to --sign",
        "hnfed doctor --role server --kit kits/server",
        "hnfed server kits/server",
    ]


def _beside(name: str) -> Callable[[Answers], str]:
    return lambda answers: str(Path.cwd() / name)


def _simulated(answers: Answers) -> bool:
    return answers["where"] == "simulation"


STARTERS: Mapping[str, Starter] = {
    "site": Starter(
        "site.yaml",
        (
            Question("name", "name of this site in the federation", _fixed("site_a"),
                     lambda v: kit_name(v, "name")),
            Question("root", "folder of the archive (DICOM, NRRD, nnU-Net)", _beside("archive"),
                     _folder),
            Question("format", f"its layout (auto, {', '.join(FORMATS)})", _fixed("auto"),
                     _one_of("format", "auto", *FORMATS)),
            Question("split", "percent of the patients for training/validation/test",
                     _fixed("64/16/20"), _shares),
            Question("device", "device (auto, cpu, cuda, cuda:0)", _fixed("auto"), _device),
            Question("cache", "folder for prepared cases, may be large", _beside("hnfed-cache"),
                     _place),
            Question("state", "folder that is kept: receipts, own weights, the site's secret",
                     _beside("hnfed-state"), _place),
        ),
        _site_text, _check_site, _site_next,
    ),
    "plan": Starter(
        "plan.yaml",
        (
            Question("where", "for a simulation on this machine, or a federation",
                     _fixed("simulation"), _one_of("where", "simulation", "federation")),
            Question("sites", "sites", _fixed("site_a, site_b"), _sites),
            Question("data", "folder with one archive a site in it, or phantom (made-up CTs)",
                     _fixed("phantom"), _data, _simulated),
            Question("organs", "organs that all sites learn together (TG-263)",
                     _fixed(", ".join(SHARED)), _organs),
            Question("rounds", "rounds of each phase",
                     lambda a: "4" if _simulated(a) and a["data"] == "phantom" else "100",
                     _whole("rounds", 1, 1_000_000)),
            Question("own", "organs that one site then learns for itself, or none", _fixed(NONE),
                     _own_organs),
            Question("own_site", "which site", lambda a: listed(a["sites"])[0],
                     lambda v: site_name(v, "own_site"), lambda a: a["own"] != NONE),
            Question("sums", "secure aggregation: the server sees sums alone (yes, no)",
                     lambda a: "yes" if len(listed(a["sites"])) >= FEWEST_FOR_SUMS else "no",
                     _one_of("sums", "yes", "no"), lambda a: not _simulated(a)),
        ),
        _plan_text, _check_plan, _plan_next,
    ),
    "federation": Starter(
        "federation.yaml",
        (
            Question("name", "name of the federation", _fixed("hn"), _name),
            Question("host", "name or IP under which sites reach this machine", _fixed("localhost"),
                     _host),
            Question("port", "port that sites dial; the next one is used on loopback",
                     _fixed("28443"), _whole("port", 1, 65534)),
            Question("sites", "sites", _fixed("site_a, site_b, site_c"), _kits),
            Question("days", "days that certificates are valid", _fixed("730"),
                     _whole("days", 1, 36500)),
        ),
        _federation_text, read_federation, _federation_next,
    ),
}  # fmt: skip


def typed(question: str) -> str:
    """Asks at the terminal; the end of input leaves as Ctrl-C does."""
    try:
        return input(question)
    except EOFError:
        print()
        raise KeyboardInterrupt from None


def can_ask() -> bool:
    """Whether a person can be asked: input and output are a terminal."""
    return os.isatty(0) and os.isatty(1)
