from __future__ import annotations

from pathlib import Path

import pytest

from core.plan.load import load, plan_hash, plan_json
from hnfed.cli.main import main
from hnfed.deploy.provision import Federation, provision
from hnfed.guard import plans
from hnfed.guard.kit import Kit, read_kit
from hnfed.guard.policy import Policy, PolicyError


@pytest.fixture
def kit(tmp_path: Path) -> Kit:
    provision(Federation("hn", "x", 1, 2, ("nyu",), 30), tmp_path)
    return read_kit(tmp_path / "nyu", "site")


def test_a_plan_is_shown_pinned_and_withdrawn(kit: Kit, capsys: pytest.CaptureFixture[str]) -> None:
    digest, command = plan_hash(load("smoke")[0].plan), ["approve", str(kit.folder), "--plan"]
    assert main([*command, "smoke"]) == 1, "nobody is asked without a terminal"
    said = capsys.readouterr().out
    assert f"plan {digest}" in said
    assert f"--plan --yes {digest[:16]}" in said
    assert main([*command, "smoke", "--yes", digest[:8]]) == 1
    assert main([*command, "smoke", "--yes", "0" * 16]) == 1
    assert plans.agreed(kit.folder) == []
    assert main([*command, "smoke", "--yes", digest[:16], "--as", "Ada"]) == 0
    assert [a.persons[0].person for a in plans.agreed(kit.folder)] == ["Ada"]
    capsys.readouterr()
    assert main([*command]) == 0
    said = capsys.readouterr().out
    assert f"approved {digest[:16]} by Ada" in said
    assert "no plan waits" in said
    assert main([*command, "smoke", "--withdraw"]) == 0
    assert main([*command, "smoke", "--withdraw"]) == 1
    assert plans.agreed(kit.folder) == []
    assert main([*command, "--withdraw"]) == 1


def test_one_that_was_refused_is_shown_as_it_came(
    kit: Kit, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = load("smoke", ["seed=7"])[0].plan
    with pytest.raises(PolicyError):
        plans.require_agreed(kit.folder, plan, Policy(plans="approved"))
    assert main(["approve", str(kit.folder), "--plan"]) == 1
    assert f"plan {plan_hash(plan)}" in capsys.readouterr().out
    assert main(["approve", str(kit.folder), "--plan", "--yes", plan_hash(plan)]) == 0
    plans.require_agreed(kit.folder, plan, Policy(plans="approved"))


def test_two_persons_where_the_policy_asks_for_them(
    kit: Kit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (kit.folder / "policy.yaml").write_text("plans: approved\napprovers: 2\n")
    path = tmp_path / "plan.json"
    path.write_text(plan_json(load("smoke")[0].plan))
    command = ["approve", str(kit.folder), "--plan", str(path), "--yes"]
    command.append(plan_hash(load("smoke")[0].plan))
    assert main([*command, "--as", "Ada"]) == 1
    assert "a second person" in capsys.readouterr().out
    assert main([*command, "--as", "Ada"]) == 1
    assert main([*command, "--as", "Grace"]) == 0
    assert "through one account" in capsys.readouterr().out
