from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from core.journal import read_events
from server.exchange import Call, exchange
from simulations import flower
from simulations.inline import SERVER_NODE, InlineGrid, run_inline
from tests.conftest import lose_a_signal

pytestmark = pytest.mark.usefixtures("task_identity")
ROOT = Path(__file__).resolve().parents[2]
PRIVATE = re.compile(r"(from|import) flwr\.(?!(app|clientapp|serverapp)\b(?!\.))")


def client() -> ClientApp:
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        if message.content["order"]["fail"]:
            raise ValueError("a fault of the app itself")
        answer = ConfigRecord(
            {
                "node": TaskIdentity.node_id,
                "partition": context.node_config["partition-id"],
                "plan": context.run_config["plan"],
            }
        )
        return Message(RecordDict({"header": answer}), reply_to=message)

    return app


def message(node: int, *, fail: bool = False) -> Message:
    return Message(RecordDict({"order": ConfigRecord({"fail": fail})}), node, "query")


def run(main: Callable[[Grid, Context], None], sites: int = 2) -> None:
    app = ServerApp()
    app.main()(main)
    run_inline(app, client(), {"plan": "x"}, sites)


def test_every_site_is_a_node_that_answers_as_itself() -> None:
    seen = []

    def main(grid: Grid, context: Context) -> None:
        assert context.run_config["plan"] == "x"
        nodes = list(grid.get_node_ids())
        identifiers = list(grid.push_messages([message(n) for n in nodes]))
        assert len(set(identifiers)) == len(nodes)
        for reply in grid.pull_messages(identifiers):
            assert reply.metadata.reply_to_message_id in identifiers
            assert reply.metadata.src_node_id in nodes
            seen.append(dict(reply.content["header"]))

    run(main, sites=3)
    assert [s["partition"] for s in seen] == [0, 1, 2]
    assert len({s["node"] for s in seen}) == 3
    assert SERVER_NODE not in {s["node"] for s in seen}
    assert {s["plan"] for s in seen} == {"x"}


def test_a_reply_is_handed_out_once_and_only_when_asked_for() -> None:
    def main(grid: Grid, context: Context) -> None:
        nodes = list(grid.get_node_ids())
        first, second = grid.push_messages([message(n) for n in nodes])
        assert len(list(grid.pull_messages([first]))) == 1
        assert list(grid.pull_messages([first])) == []
        assert len(list(grid.pull_messages([first, second, "unknown"]))) == 1

    run(main)


def test_send_and_receive_is_push_and_pull() -> None:
    def main(grid: Grid, context: Context) -> None:
        replies = list(grid.send_and_receive([message(n) for n in grid.get_node_ids()]))
        assert len(replies) == 2

    run(main)


def test_what_an_app_raises_comes_out_and_the_server_is_itself_again() -> None:
    def main(grid: Grid, context: Context) -> None:
        node = next(iter(grid.get_node_ids()))
        with pytest.raises(Exception, match="a fault of the app"):
            list(grid.pull_messages(grid.push_messages([message(node, fail=True)])))
        assert TaskIdentity.node_id == SERVER_NODE
        raise RuntimeError("out of main")

    with pytest.raises(RuntimeError, match="out of main"):
        run(main)


def test_a_fault_of_an_app_is_no_unreadable_reply() -> None:
    def main(grid: Grid, context: Context) -> None:
        node = next(iter(grid.get_node_ids()))
        content = RecordDict({"order": ConfigRecord({"fail": True})})
        exchange(grid, {"a": content}, {"a": node}, Call("query", "g", 5.0))

    with pytest.raises(RuntimeError, match="a fault of the app"):
        run(main)


@pytest.mark.usefixtures("leaving")
def test_a_signal_that_an_app_took_for_its_own_error_ends_the_run() -> None:
    seen = []
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        seen.append(context.node_config["partition-id"])
        lose_a_signal()
        return Message(RecordDict(), reply_to=message)

    def main(grid: Grid, context: Context) -> None:
        list(grid.send_and_receive([message(n) for n in grid.get_node_ids()]))
        seen.append("another round")

    server = ServerApp()
    server.main()(main)
    with pytest.raises(SystemExit) as caught:
        run_inline(server, app, {"plan": "x"}, 2)
    assert caught.value.code == 143
    assert seen == [0]


def test_it_is_a_grid_of_flower() -> None:
    assert issubclass(InlineGrid, Grid)
    assert not InlineGrid.__abstractmethods__


def test_flower_still_takes_its_identity_from_where_we_set_it() -> None:
    """The one private import: a message outside a run is refused without it, and made with it."""
    names = ("run_id", "task_id", "node_id")
    before = {n: getattr(TaskIdentity, f"_{n}") for n in names}
    for name in names:
        setattr(TaskIdentity, f"_{name}", None)
    try:
        with pytest.raises(Exception):  # noqa: B017
            message(2)
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, f"_{name}", value)
    assert message(2).metadata.src_node_id == SERVER_NODE


def test_private_imports_stand_in_one_file() -> None:
    users = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "simulations").rglob("*.py")
        if PRIVATE.search(path.read_text(encoding="utf-8"))
    ]
    assert users == [Path(flower.__file__).relative_to(ROOT).as_posix()]


def test_two_runs_of_one_plan_give_the_same_weights(run_tiny: Callable[..., Path]) -> None:
    overrides = ("phases.0.rounds=1", "phases.1.rounds=1")
    first, second = run_tiny("a", *overrides), run_tiny("b", *overrides)
    for path in (
        "checkpoints/pretrain/best.safetensors",
        "checkpoints/pretrain/last.safetensors",
        "sites/nyu/personalise/best.safetensors",
    ):
        assert (first / path).read_bytes() == (second / path).read_bytes(), path
    kinds = [[e["event"] for e in read_events(f / "journal.jsonl")] for f in (first, second)]
    assert kinds[0] == kinds[1]
