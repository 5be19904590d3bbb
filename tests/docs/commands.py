"""The commands of README.md and docs/, as a reader would copy them, and where each can run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
BLOCK = re.compile(r"^ *```([a-z]*)\n(.*?)^ *```", flags=re.M | re.S)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Command:
    """One line of a block without a language, or with ``sh``; its comment is left out."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        """As a shell would take it apart; a pipe or a second command ends it."""
        words = shlex.split(self.text)
        ends = [i for i, word in enumerate(words) if word in (">", "&&", "|", ";")]
        return words[: min(ends, default=len(words))]


def blocks(page: Path, *languages: str) -> list[str]:
    """The text of the fenced blocks of these languages."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for language, text in found if language in languages]


def commands() -> list[Command]:
    """All commands in blocks, page by page; tables of results and layouts of folders are none."""
    return [
        Command(page.relative_to(ROOT).as_posix(), line)
        for page in PAGES
        for block in blocks(page, "", "sh")
        if not block.startswith(NO_COMMANDS)
        for line in _lines(block)
    ]


def _lines(block: str) -> Iterator[str]:
    for line in block.replace("\\\n", " ").splitlines():
        if text := re.sub(r"(^|\s)#.*", "", line).strip():
            yield " ".join(text.split())


def spans() -> set[tuple[str, str]]:
    """Page and text of what stands in backticks and begins as a command does."""
    return {
        (page.relative_to(ROOT).as_posix(), text)
        for page in (*PAGES, ROOT / "CONTRIBUTING.md")
        for text in SPAN.findall(BLOCK.sub("", page.read_text(encoding="utf-8")))
        if text.startswith(("hnfed ", "make ", "python -m benchmarks"))
    }


# How a block begins that is a table of results, or a folder's layout.
NO_COMMANDS = ("benchmark ", "DIR/")

# What needs more than this machine and minutes: each by name, and why. The test says how many there
# are: whoever adds one says so there.
OPENKBP = "the OpenKBP patients, and an hour (`make real-data`)"
SLURM = "a Slurm cluster (tests/simulations/places)"
RAY = "a Ray cluster (tests/simulations)"
FEDERATION = "a running federation: `make deploy-test` plays it"
SITE_RUN = "a run that came to this site (tests/hnfed/deploy/test_site_report.py)"
INSTALL = "a package index and a wheel (tests/test_install.py)"
STUDY = "a study that has run (tests/hnfed/compare)"
WATCHED = "watches until Ctrl-C (tests/hnfed/cli/test_watch.py)"
WANDB = "an account of W&B"
TOTAL = "TotalSegmentator and its weights (tests/hnfed/evaluate)"
ELSEWHERE = {
    **{
        f"TotalSegmentator -i ct.nii.gz -o other/CASE/segmentations --task {task}": TOTAL
        for task in ("headneck_muscles", "head_glands_cavities", "craniofacial_structures")
    },
    "hnfed watch kits/server": WATCHED,
    "hnfed watch kits/server --run plan-2": WATCHED,
    "hnfed watch hn --site nyu.yaml": WATCHED,
    "hnfed watch kits/server --listen": WATCHED,
    "hnfed watch hn --site nyu.yaml --listen": WATCHED,
    "curl --unix-socket kits/server/metrics.sock http://localhost/metrics": WATCHED,
    "curl --unix-socket kits/server/metrics.sock http://localhost/health": WATCHED,
    "wandb sweep docs/wandb-sweep.yaml": WANDB,
    "wandb agent ENTITY/PROJECT/ID": WANDB,
    "git clone --depth 1 https://github.com/ababier/open-kbp": "a network",
    "make demo": "the slow suite runs what it runs: hnfed simulate demo",
    "make test": "runs this test",
    "hnfed simulate openkbp 'simulation.data=[DIR,DIR_MORE]' --out runs/openkbp": OPENKBP,
    "hnfed simulate openkbp simulation.data=open-kbp/provided-data phases.pretrain.rounds=4 "
    "phases.personalise.rounds=4 --out runs/joined": OPENKBP,
    "hnfed simulate openkbp simulation.data=open-kbp/provided-data phases.pretrain.rounds=4 "
    "phases.personalise.rounds=4 simulation.baseline=local-only --out runs/alone": OPENKBP,
    "hnfed grid transfer simulation.data=DIR --on slurm": SLURM,
    "hnfed grid transfer simulation.data=DIR --on slurm --slurm partition=long "
    "--slurm time=600 --slurm mem=8GB": SLURM,
    "hnfed grid transfer simulation.data=DIR --out runs/transfer": OPENKBP,
    "hnfed grid transfer simulation.data=DIR --only 'scratch-*'": OPENKBP,
    "hnfed grid deciding simulation.data=[OPENKBP,OPENKBP_MORE] --out runs/deciding": OPENKBP,
    "hnfed grid deciding simulation.data=[OPENKBP,OPENKBP_MORE] --out runs/deciding "
    "--list": OPENKBP,
    "python -m benchmarks.deciding collect runs/deciding docs/results/deciding.json": OPENKBP,
    "python -m benchmarks.deciding power docs/results/deciding-pilot.json "
    "--figure docs/pictures/deciding-power.svg": OPENKBP,
    "python -m benchmarks.deciding analyse docs/results/deciding.json": OPENKBP,
    "hnfed grid transfer simulation.data=DIR seeds=[0,1,2] --jobs 2": OPENKBP,
    "hnfed folds runs/crossval": STUDY,
    "hnfed report hn --site nyu.yaml": SITE_RUN,
    "hnfed report hn --site site.yaml": SITE_RUN,
    "hnfed server kits/server": FEDERATION,
    "hnfed client hn --site nyu.yaml": FEDERATION,
    "hnfed client hn --site site.yaml": FEDERATION,
    "hnfed run openkbp 'phases.pretrain.sites=[nyu, miccai]' 'phases.personalise.sites=[nyu]' "
    "--server kits/server --name first": FEDERATION,
    "hnfed run plan.yaml --server kits/server": FEDERATION,
    "hnfed run plan.yaml --server kits/server --name plan --resume": FEDERATION,
    "hnfed run plan.yaml --server kits/server --auto-resume": FEDERATION,
    "hnfed run openkbp --server kits/server --name first 'phases.pretrain.sites=[nyu, miccai]' "
    "'phases.personalise.sites=[nyu]' "
    "'preprocess={spacing_mm: [6.0, 9.0, 9.0], crop: [56, 24, 24]}' "
    "'model.channels=[4, 8, 16]' phases.pretrain.rounds=2 phases.pretrain.local_epochs=1 "
    "phases.personalise.rounds=2 phases.personalise.local_epochs=1": FEDERATION,
    "hnfed simulate openkbp simulation.data=DIR simulation.ray=HEAD:6379 "
    "--out /shared/me/runs/openkbp": RAY,
    "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=/shared/me/token": RAY,
    "ray start --head --port=6379": RAY,
    "ray start --address=HEAD:6379": RAY,
    "pip install 'hnfed[slurm]'": INSTALL,
    "python3 -m venv hn && hn/bin/python -m pip install -c constraints.txt "
    "hnfed-0.2.0-py3-none-any.whl": INSTALL,
    "uv venv && uv pip install -c constraints.txt hnfed-0.2.0-py3-none-any.whl": INSTALL,
    "conda create -n hn python=3.12 pip && conda run -n hn python -m pip install "
    "-c constraints.txt hnfed-0.2.0-py3-none-any.whl": INSTALL,
    "python3 -m venv --system-site-packages hn && echo 'torch<2.7' > torch.txt && "
    "hn/bin/python -m pip install -c torch.txt hnfed-0.2.0-py3-none-any.whl": INSTALL,
    "make wheelhouse TORCH=cpu": INSTALL,
    "(cd wheelhouse && sha256sum --quiet -c SHA256SUMS)": INSTALL,
    "python3 -m venv hn && hn/bin/python -m pip install --no-index --find-links wheelhouse "
    "hnfed": INSTALL,
    "podman build -t hnfed .": "podman",
    'podman run --rm -v "$PWD:/work" hnfed simulate smoke': "podman",
}
# What runs in the slow suite: pytest -m slow tests/docs
SLOW = (
    "hnfed simulate demo phases.personalise.candidates=[local,fine-tuned,frozen]",
    "hnfed simulate my-plan.yaml train.lr=0.002 phases.pretrain.rounds=30",
    "hnfed doctor --kit hn --site nyu.yaml --plan plan.yaml",
    "hnfed doctor --kit hn --site nyu.yaml --plan openkbp",
    "cd bundle",
    "python -m monai.bundle verify_net_in_out network_def "
    "--meta_file configs/metadata.json --config_file configs/inference.json",
    "python -m monai.bundle run --config_file configs/inference.json --bundle_root . "
    "--input ct.nrrd --output contours",
)
