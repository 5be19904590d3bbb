from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("core", "server", "client", "simulations")
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"yaml.load", "os.system", "os.popen", "eval", "exec"}
KEYWORDS = {"weights_only": False, "allow_pickle": True, "shell": True, "trust_remote_code": True}


def problems(source: str) -> Iterator[str]:
    """What a file does that can run foreign code, or that binds it to one kind of device."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in PICKLES)
        elif isinstance(node, ast.ImportFrom):
            if node.module in PICKLES:
                yield node.module
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CALLS or name.split(".")[0] in PICKLES:
                yield f"{name}("
            if isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
                yield ".cuda("
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if keyword.arg in KEYWORDS and value is KEYWORDS[keyword.arg]:
                    yield f"{keyword.arg}={value}"


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_dangerous(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 1, f"nothing to read in {package}"
    found = [
        f"{path.relative_to(ROOT)}: {problem}"
        for path in files
        for problem in problems(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import load",
        "pickle.load(f)",
        "torch.load(p, weights_only=False)",
        "np.load(p, allow_pickle=True)",
        "yaml.load(f)",
        "subprocess.run('x', shell=True)",
        "os.system('x')",
        "model.cuda()",
        "eval('x')",
    ],
)
def test_the_reader_sees_each_danger(source: str) -> None:
    assert list(problems(source))


@pytest.mark.parametrize(
    "source",
    [
        "np.load(p, allow_pickle=False)",
        "yaml.safe_load(f)",
        "torch.cuda.is_available()",
        "model.eval()",
        "pickled = 1",
    ],
)
def test_the_reader_lets_the_rest_pass(source: str) -> None:
    assert list(problems(source)) == []
