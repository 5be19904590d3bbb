"""What people type wrong: real commands, and words of the answer they have to get."""

from __future__ import annotations

from dataclasses import dataclass, field

SITE = """
name: nyu
root: {archive}
cache: cache
state: state
"""
FEDERATION = """
name: hn
server: {host: fed.example.org}
sites: [nyu, miccai]
"""


@dataclass(frozen=True)
class Mistake:
    """One row: the command as typed, and words of the answer.

    Attributes:
        typed: what stands behind ``hnfed``; {archive}, {kits}, {run} are folders that are in order.
        value: what the user gave and has to find again in the answer.
        remedy: words of what to do.
        files: those that the user wrote, by name.
    """

    typed: str
    value: str
    remedy: str
    files: dict[str, str] = field(default_factory=dict)


def of_site(value: str, remedy: str, **changes: str) -> Mistake:
    """A site file with keys changed, removed (empty) or added."""
    lines = dict(line.split(": ", 1) for line in SITE.strip().splitlines()) | changes
    text = "".join(f"{key}: {given}\n" for key, given in lines.items() if given)
    return Mistake("prepare site.yaml smoke", value, remedy, {"site.yaml": text})


def of_federation(value: str, remedy: str, before: str, after: str) -> Mistake:
    """A federation file in which one text stands for another."""
    assert before in FEDERATION
    text = FEDERATION.replace(before, after)
    return Mistake("provision fed.yaml -o kits", value, remedy, {"fed.yaml": text})


COMMANDS = {
    "command misspelt": Mistake("simulat demo", "simulat", "simulate"),
    "option misspelt": Mistake("simulate demo --ouput x", "--ouput", "--out"),
    "option of another command": Mistake("report {run} --json x", "--json", "hnfed report --help"),
    "model forgotten": Mistake("predict -i ct.nrrd -o out", "--model", "--model runs/demo"),
    "output format misspelt": Mistake(
        "predict -i ct.nrrd -o out --model {run} --format nfti", "nfti", "--help"
    ),
    "split misspelt": Mistake(
        "evaluate --model {run} --data {archive} --split tests", "tests", "test"
    ),
    "archive format misspelt": Mistake("check {archive} --format pdca", "pdca", "pddca"),
    "subcommand misspelt": Mistake("config shw demo", "shw", "show"),
    "model and contours": Mistake(
        "evaluate --model {run} --pred p --data {archive}", "--pred", "one of the two"
    ),
    "processes in words": Mistake("check {archive} --jobs two", "two", "--help"),
    "no processes": Mistake("check {archive} --jobs 0", "'0'", "--help"),
    "role misspelt": Mistake("doctor --role hospital", "hospital", "--help"),
    "blank for =": Mistake("simulate smoke train.lr 0.001", "train.lr", "train.lr=0.001"),
    "blanks round =": Mistake("simulate smoke train.lr = 0.001", "train.lr", "train.lr=0.001"),
    "nothing to resume": Mistake("simulate smoke --out none --resume", "none", "--out"),
    "study misspelt": Mistake("grid transfr --list", "transfr", "transfer"),
    "cluster misspelt": Mistake("grid transfer --on slrm", "slrm", "slurm"),
    "json without list": Mistake("grid transfer --json cells.json", "cells.json", "--list"),
}
PLANS = {
    "plan misspelt": Mistake("simulate dmeo", "dmeo", "demo"),
    "plan not there": Mistake("config show plans/mine.yaml", "plans/mine.yaml", "path"),
    "key misspelt": Mistake("config show smoke train.lrr=0.1", "lrr", "config show"),
    "key of another tool": Mistake(
        "config show smoke train.learning_rate=0.1", "learning_rate", "config show"
    ),
    "section misspelt": Mistake("config show smoke trian.lr=0.1", "trian", "config show"),
    "word for a number": Mistake("config show smoke train.lr=fast", "fast", "number"),
    "negative rate": Mistake("config show smoke train.lr=-0.1", "-0.1", "above 0"),
    "comma for a point": Mistake("config show smoke train.lr=0,001", "0,001", "number"),
    "phase misspelt": Mistake("config show smoke phases.pretrian.rounds=3", "pretrian", "pretrain"),
    "no rounds": Mistake("config show smoke phases.pretrain.rounds=0", "0", ">= 1"),
    "two axes": Mistake("config show smoke preprocess.spacing_mm=[3,1]", "[3", "three mm"),
    "spacing in metres": Mistake(
        "config show smoke preprocess.spacing_mm=[0.003,0.0015,0.0015]", "0.003", "from 0.05 to 50"
    ),
    "crop in millimetres": Mistake(
        "config show smoke preprocess.crop=[288.5,192,280]", "288.5", "whole number"
    ),
    "window upside down": Mistake(
        "config show smoke preprocess.window_hu=[300,-200]", "300", "low < high"
    ),
    "optimiser misspelt": Mistake("config show smoke train.optimizer=adma", "adma", "adamw"),
    "network misspelt": Mistake("simulate smoke model.name=unter", "unter", "unetr"),
    "organ by another name": Mistake(
        "config show smoke phases.pretrain.organs=[Parotid_Left]", "Parotid_Left", "Parotid_L"
    ),
    "start from a phase misspelt": Mistake(
        "config show smoke phases.personalise.init=pretrian", "pretrian", "pretrain"
    ),
    "freeze misspelt": Mistake(
        "config show smoke phases.personalise.freeze=encodr", "encodr", "encoder"
    ),
    "precision misspelt": Mistake("config show smoke train.amp=fp8", "fp8", "bf16"),
    "strategy misspelt": Mistake(
        "config show smoke federation.strategy.name=fedavgg", "fedavgg", "fedavg"
    ),
    "sums over two sites": Mistake(
        "config show smoke federation.secure_aggregation=true", "2 sites", "until there are 3"
    ),
    "engine misspelt": Mistake("config show smoke simulation.engine=rya", "rya", "ray"),
    "baseline misspelt": Mistake(
        "config show smoke simulation.baseline=loca-only", "loca-only", "local-only"
    ),
    "site nobody has": Mistake(
        "simulate smoke phases.pretrain.sites=[nyu,miccia]", "miccia", "miccai"
    ),
    "GPU not there": Mistake("simulate smoke simulation.device=cuda:99", "cuda:99", "cpu"),
    "data not there": Mistake(
        "simulate openkbp simulation.data=/none", "/none", "correct simulation.data"
    ),
    "tab in a plan": Mistake(
        "simulate p.yaml", "p.yaml, line 2", "no tabs", {"p.yaml": "train:\n\tlr: 1\n"}
    ),
    "key twice in a plan": Mistake(
        "simulate p.yaml",
        "train stands twice",
        "mend",
        {"p.yaml": "train: {lr: 1}\ntrain: {lr: 2}\n"},
    ),
    "site file for a plan": Mistake(
        "simulate s.yaml", "name = nyu", "config show", {"s.yaml": SITE}
    ),
}
SITES = {
    "site file not there": Mistake("prepare nyu.yaml smoke", "nyu.yaml", "path"),
    "site key misspelt": of_site("roots", "root", root="", roots="/data"),
    "cache forgotten": of_site("(missing)", "give", cache=""),
    "name of a hospital": of_site("NYU Langone", "letters", name="NYU Langone"),
    "shares in per cent": of_site("64", "from 0 to 1", split="{train: 64, val: 16, test: 20}"),
    "device misspelt": of_site("gpu0", "cuda:0", device="gpu0"),
    "site format misspelt": of_site("dcm", "dicom", format="dcm"),
    "root not there": of_site("/none", "folder", root="/none"),
    "alias no list": of_site("lt parotid", "[", aliases="{Parotid_L: lt parotid}"),
    "split file not there": of_site("splits.csv", "case,split", split="{file: splits.csv}"),
    "cache negative": of_site("-5", "from 0.001", cache_gb="-5"),
    "proxy without http": of_site("proxy:8080", "http://", proxy="proxy:8080"),
}
DATA = {
    "archive not there": Mistake("check /none", "/none", "folder"),
    "archive a file": Mistake("check ct.nrrd", "ct.nrrd", "folder", {"ct.nrrd": "x"}),
    "archive empty": Mistake("check empty", "empty", "CASE/img.nrrd", {"empty/readme.txt": "x"}),
    "CT not there": Mistake("predict -i ct.nrrd -o out --model {run}", "ct.nrrd", "give a CT"),
    "CT no image": Mistake(
        "predict -i a.txt -o out --model {run} --site north", "a.txt", "NRRD", {"a.txt": "x"}
    ),
    "CT cut short": Mistake(
        "predict -i a.nrrd -o out --model {run} --site north",
        "a.nrrd",
        "copy",
        {"a.nrrd": "NRRD0004\n"},
    ),
    "CT in metres": Mistake("predict -i {metres} -o out --model {run} --site north", "0.003", "mm"),
    "one slice for a CT": Mistake(
        "predict -i {slice} -o out --model {run} --site north", "slice", "several slices"
    ),
    "model not there": Mistake("predict -i {ct} -o out --model runs/dmeo", "runs/dmeo", "run"),
    "model an empty folder": Mistake(
        "predict -i {ct} -o out --model m", " m", "checkpoint", {"m/x.txt": "x"}
    ),
    "model a text": Mistake(
        "predict -i {ct} -o out --model m.safetensors",
        "m.safetensors",
        "m.json",
        {"m.safetensors": "x"},
    ),
    "organ misspelt": Mistake(
        "predict -i {ct} -o out --model {run} --site north --organs Brainsten",
        "Brainsten",
        "Brainstem",
    ),
    "phase of a run misspelt": Mistake(
        "predict -i {ct} -o out --model {run} --phase pretrian", "pretrian", "pretrain"
    ),
    "device of another tool": Mistake(
        "predict -i {ct} -o out --model {run} --site north --device gpu", "gpu", "cuda"
    ),
    "no such GPU": Mistake(
        "predict -i {ct} -o out --model {run} --site north --device cuda:99", "cuda:99", "cpu"
    ),
    "contours not there": Mistake("evaluate --pred none --data {archive}", "none", "folder"),
    "contours of nobody": Mistake(
        "evaluate --pred p --data {archive}", "--pred = p", "c4/NAME.nrrd", {"p/x.txt": "x"}
    ),
    "site of nobody": Mistake(
        "evaluate --model {run} --phase pretrain --data {archive} --site nrth", "nrth", "north"
    ),
    "run not there": Mistake("report runs/dmeo", "runs/dmeo", "run folder"),
    "no run": Mistake("report {archive}", "balls", "run folder"),
    "export over files": Mistake(
        "export {run} --phase pretrain -o out", "out", "new", {"out/x.txt": "x"}
    ),
    "export of no phase": Mistake("export {run} --phase fine -o out", "fine", "pretrain"),
    "compare with nothing": Mistake("compare runs/none {run}", "runs/none", "run folder"),
    "Dice in per cent": Mistake("compare {run} {run} --dice 70", "70", "0.7"),
    "no study": Mistake("folds {run}", "run", "hnfed grid"),
    "json into a file's folder": Mistake(
        "check {archive} --json a.txt/x.json", "a.txt", "folder", {"a.txt": "x"}
    ),
}
FEDERATIONS = {
    "federation file not there": Mistake("provision fed.yml -o kits", "fed.yml", "path"),
    "federation key misspelt": of_federation("site", "sites", "sites:", "site:"),
    "port too high": of_federation("99999", "65535", "org}", "org, port: 99999}"),
    "port in words": of_federation("https", "number", "org}", "org, port: https}"),
    "port twice": of_federation("28443", "another", "org}", "org, internal_port: 28443}"),
    "URL for a host": of_federation(
        "https://", "name", "fed.example.org", "https://fed.example.org"
    ),
    "host forgotten": of_federation("(missing)", "name", "host: fed.example.org", "port: 28443"),
    "site twice": of_federation("nyu", "once", "miccai", "nyu"),
    "site in capitals": of_federation("NYU", "small letters", "nyu", "NYU"),
    "site called server": of_federation("server", "another name", "miccai", "server"),
    "no sites": of_federation("(missing)", "[nyu, miccai]", "[nyu, miccai]", ""),
    "revoke a stranger": Mistake(
        "provision fed.yaml -o {kits} --revoke nuy", "nuy", "nyu", {"fed.yaml": FEDERATION}
    ),
    "request not there": Mistake(
        "provision fed.yaml -o kits --sign request.pem",
        "request.pem",
        "hnfed join",
        {"fed.yaml": FEDERATION},
    ),
    "request no request": Mistake(
        "provision fed.yaml -o kits --sign r.pem",
        "r.pem",
        "hnfed join",
        {"fed.yaml": FEDERATION, "r.pem": "x"},
    ),
}
KITS = {
    "kit not there": Mistake("client kits/nyu", "kits/nyu", "hnfed provision"),
    "kit of the server": Mistake(
        "client {kits}/server --site site.yaml", "server", "hnfed provision"
    ),
    "kit of a site": Mistake("server {kits}/nyu", "nyu", "hnfed provision"),
    "site file forgotten": Mistake("client {kits}/nyu", "site.yaml", "--site"),
    "kit of another site": Mistake(
        "client {kits}/miccai --site site.yaml", "nyu", "name: miccai", {"site.yaml": SITE}
    ),
    "kit damaged": Mistake("client k", "kit.json", "coordinator", {"k/kit.json": "{"}),
    "hash too short": Mistake("approve {kits}/nyu --yes abc", "abc", "16"),
    "plan's hash too short": Mistake("approve {kits}/nyu --plan --yes abc", "abc", "16"),
    "plan for approval misspelt": Mistake("approve {kits}/nyu --plan dmeo", "dmeo", "demo"),
    "join without a key": Mistake("join hn --answer nyu.json", "hn", "--name"),
    "join by a bad name": Mistake("join hn --name NYU", "NYU", "small letters"),
    "two steps at once": Mistake("join hn --name nyu --answer a.json", "one step", "one of --name"),
    "run by a site's kit": Mistake("run smoke --server {kits}/nyu", "nyu", "hnfed provision"),
    "run without a server": Mistake("run smoke --server {kits}/server", "server", "hnfed server"),
    "policy misspelt": Mistake("approve {policy}", "scorse", "scores"),
    "doctor without its kit": Mistake("doctor --kit hn", "hn", "hnfed"),
}
TABLE = COMMANDS | PLANS | SITES | DATA | FEDERATIONS | KITS
