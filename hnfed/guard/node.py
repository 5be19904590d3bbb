"""A site's side of every order: receive, look, have it worked on behind walls, let out, send.

One message at a time. Whatever is wrong with one is answered once, with a code; its text stays in
the site's log. Nothing here listens, and nothing that came from the server is run but a bundle
that this site approved, in a process that is closed in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from core.data.cached_case import Entry
from core.plan.load import plan_from_json, plan_hash
from core.plan.schema import Phase, Plan
from core.training.ranks import require_batch
from core.wire.countersignature import Countersignature
from core.wire.messages import NEED_BASE, OK, SETTINGS, Header, Order
from hnfed.guard import closed, exit, order, pins, standing
from hnfed.guard.answers import note_answer, require_unanswered
from hnfed.guard.approvals import NotApprovedError, require_approved
from hnfed.guard.bundle_version import OtherVersionError, require_same_wire
from hnfed.guard.case_sets import remember_cases, require_apart_from_earlier
from hnfed.guard.countersigned import note
from hnfed.guard.fleet import (
    Arrival,
    Connection,
    FleetError,
    MessageError,
    Run,
    RunOverError,
)
from hnfed.guard.floors import require_apart, require_taken
from hnfed.guard.kept_rounds import require_onward, with_trained
from hnfed.guard.keyring import FOLDER as SUMS
from hnfed.guard.keyring import keyring_of
from hnfed.guard.kit import Kit
from hnfed.guard.kit_files import needed_bytes
from hnfed.guard.log import Log
from hnfed.guard.masking_session import Keyring
from hnfed.guard.outbox import OutboxError
from hnfed.guard.pins import Pin
from hnfed.guard.plans import require_agreed
from hnfed.guard.policy import (
    Policy,
    PolicyError,
    read_policy,
    require_entries,
    require_order,
    require_plan,
)
from hnfed.guard.receipts import Chain
from hnfed.guard.runs_room import require_room
from hnfed.guard.scored_sets import Cell, Cells, cells_of, remember_scores, too_near
from hnfed.guard.unpack import BundleError, fresh_folder, is_intact
from hnfed.guard.walls import walls_of
from hnfed.guard.weights import WeightsError, require_weights
from hnfed.guard.weights_record import FOLDER as WEIGHTS
from hnfed.guard.weights_record import forget, is_kept, record_of

# Between two questions for a message. Each costs Flower's server 12 to 15 ms of its one process, so
# some 60 sites that ask every second fill it (python -m benchmarks.federation_cost).
POLL_SECONDS, LONGEST_POLL_SECONDS = 1.0, 10.0
LONGEST_PAUSE_SECONDS = 16.0  # after a message that was refused, as those before it were
# Folders of the guard's that no training process reads.
SECRET = (pins.FOLDER, pins.PLANS, SUMS, WEIGHTS)
REMEMBERED = 4  # runs whose bundles are not fetched again


class PreparationError(RuntimeError):
    """The site's own preparation failed; `code` tells the server how."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True)
class House:
    """The site, as the guard sees it.

    Attributes:
        kit: of the site.
        name: of the site.
        state: its state folder.
        cache: its cache of prepared cases.
        devices: of the processes that train, by rank.
        prepare: archive to cache for a plan and a run, by installed code; the keyed hash of the
            split, and how many cases were left out, by reason. Raises `PreparationError`.
        entries: the cases that a phase would use, of the split with that hash: those of ``train``,
            ``val`` or ``test``.
        describe: what the bundle's client is told of the site, by run and pin.
        say: a line for the person at the site.
    """

    kit: Kit
    name: str
    state: Path
    cache: Path
    devices: tuple[torch.device, ...]
    prepare: Callable[[str, str], tuple[str, Mapping[str, int]]]
    entries: Callable[[Plan, Phase, str, str], Sequence[Entry]]
    describe: Callable[[str, Pin], str]
    say: Callable[[str], None] = field(default=print)

    @property
    def guard(self) -> Path:
        """Folder of the guard's own."""
        return self.state / "guard"


def serve(house: House, connection: Connection) -> None:
    """Answers messages until the connection is lost.

    After each message that was refused it waits for twice as long as after the one before: a
    server that sends such messages without end fills neither the receipts nor the screen.

    Args:
        house: the site.
        connection: an open one.

    Raises:
        FleetError: the connection is lost.
    """
    desk, refused, since = Desk(house, connection), 0, time.monotonic()
    try:
        while True:
            if not refused:
                desk.get_ready()
            arrival = connection.receive()
            if arrival is None:
                time.sleep(pause(time.monotonic() - since))
                continue
            done = False
            try:
                done = desk.handle(arrival)
            except RunOverError:
                house.say("the run has ended meanwhile; its last order is left as it is")
            since = time.monotonic()
            refused = 0 if done else min(refused + 1, 10)
            if refused:
                time.sleep(min(2.0 ** (refused - 2), LONGEST_PAUSE_SECONDS))
    finally:
        desk.close()


def pause(waited: float) -> float:
    """Seconds until the server is asked for a message again, by how long none has come."""
    return min(max(POLL_SECONDS, waited / 60), LONGEST_POLL_SECONDS)


class Desk:
    """Where messages are looked at, with what is remembered from one to the next."""

    def __init__(self, house: House, connection: Connection) -> None:
        self.house = house
        self.connection = connection
        self.log = Log(house.state)
        self.receipts = Chain(house.state, house.kit.folder / "node.key")
        self._bundles: dict[str, bytes] = {}
        self._workers = closed.Workers(house.guard / "scratch", self.log)

    def get_ready(self) -> None:
        """For the next order: its process loads what it needs, while nothing is asked."""
        self._workers.get_ready()

    def close(self) -> None:
        """Ends what waits for the next order."""
        self._workers.close()

    def handle(self, arrival: Arrival) -> bool:
        """Answers one message; with a code where anything is wrong with it.

        Returns:
            Whether it was an order that this site works on.
        """
        begun = time.monotonic()
        case = Case()
        done = False
        try:
            reply = self._answer(arrival, case, begun)
            done = True
        except (RunOverError, KeyboardInterrupt):
            raise
        except FleetError as error:
            if not isinstance(error, MessageError):
                raise
            reply = self._refuse(error, case, "E_ORDER")
        except NotApprovedError as error:
            self.house.say(str(error))
            reply = self._refuse(error, case, "E_BUNDLE", quiet=True)
        except OtherVersionError as error:
            self.house.say(str(error))
            reply = self._refuse(error, case, "E_CODE", quiet=True)
        except BundleError as error:
            reply = self._refuse(error, case, "E_BUNDLE")
        except closed.OvertimeError as error:
            reply = self._refuse(error, case, "E_TIME")
        except PreparationError as error:
            reply = self._refuse(error, case, error.code)
        except Exception as error:
            reply = self._refuse(error, case, exit.code_of(error))
        self._note(case, str(reply.config.get("code", "")))
        if not case.pulled:
            self.connection.confirm(arrival)
        seconds = time.monotonic() - begun
        self.connection.send(arrival, reply.config, reply.metrics, reply.parcel, seconds=seconds)
        return done

    def _answer(self, arrival: Arrival, case: Case, begun: float) -> exit.Reply:
        house = self.house
        if arrival.kind not in order.KINDS:
            raise order.OrderError(f"a message of kind {arrival.kind[:40]!r}")
        run = self.connection.run(arrival)
        content = self._bundle(arrival, run)
        policy = read_policy(house.kit.folder / "policy.yaml")
        require_approved(content, house.kit, policy)
        require_same_wire(content)
        settings = order.settings_of(run.config)
        case.run = settings["run_id"]
        self.log.begin(f"run {case.run}: {arrival.kind}")
        plan = plan_from_json(settings["plan"])
        require_plan(plan, house.name, policy)
        require_agreed(house.kit.folder, plan, policy)
        pin = pins.pinned(house.guard, case.run, plan_hash(plan))
        sums = plan.federation.secure_aggregation
        keyring = keyring_of(house.kit, house.name, house.guard, policy) if sums else None
        records = self.connection.content(arrival, exit.incoming_bytes(plan, keyring))
        case.pulled = True
        case.asked = asked = order.read(arrival.kind, house.name, case.run, plan, records)
        self._heed(asked.order)
        self._note(case)
        self._say(case, "begun")
        if asked.kind == "query":
            require_room(self.house.state, policy, asked)
            require_batch(plan.train.batch, self.house.devices)
            pin = self._prepared(case, settings["plan"], pin)
        else:
            case.entries = self._require_entries(asked, policy, pin)
        if self._known_weights(asked, records, keyring, policy, pin):
            reply = self._worked_on(asked, settings, records, pin, policy, content)
        else:
            reply = exit.Reply(_needs_base(asked).to_config(), {})
        reply = _with_startup(reply, time.monotonic() - begun)
        policy = self._still_allowed(content, plan)
        self._require_made(reply, asked, policy, case.entries)
        released = exit.release(
            reply,
            asked,
            policy,
            exit.Known(
                pin.split, _bytes_of(records, "arrays"), self._near(case, pin, policy, reply)
            ),
            receipts=self.receipts,
            keyring=keyring,
        )
        if asked.phase is not None and released.config["code"] == OK:
            self._count(case, pin, asked, released.metrics)
        lacks = released.config["code"] == NEED_BASE
        self._say(case, "asks for the frozen part first" if lacks else _told(released))
        return released

    def _known_weights(
        self,
        asked: order.Asked,
        records: Mapping[str, Any],
        keyring: Keyring | None,
        policy: Policy,
        pin: Pin,
    ) -> bool:
        """Weights that are worked with are those that this site derives, if the policy says so.

        A run that was worked on under ``weights: any`` is not gone on with under ``agreed``, even
        if it was looked at before: what the site keeps of it may be made of anything.

        Returns:
            False where the base of the phase must come first, to be looked at.
        """
        if asked.kind == "query":
            return True
        if policy.weights != "agreed":
            forget(self.house.guard, asked.run, self.house.say)
            return True
        if pin.answered and not is_kept(self.house.guard, asked.run):
            raise WeightsError(
                f"run {asked.run}: it was worked on here, and which weights of it were verified is "
                "not kept (weights: any until now, or too many runs since); let the coordinator "
                "begin a new run"
            )
        record = record_of(self.house.guard, asked.run, self.house.say)
        return require_weights(asked, records, keyring, record)

    def _still_allowed(self, content: bytes, plan: Plan) -> Policy:
        """What a person here took back while the order was worked on does not leave.

        Returns:
            The policy as it is now.
        """
        house = self.house
        policy = read_policy(house.kit.folder / "policy.yaml")
        require_approved(content, house.kit, policy)
        require_plan(plan, house.name, policy)
        require_agreed(house.kit.folder, plan, policy)
        return policy

    def _bundle(self, arrival: Arrival, run: Run) -> bytes:
        """A run's bundle; fetched once, judged by its content alone."""
        key = f"{arrival.run} {run.bundle}"
        if key not in self._bundles:
            if len(self._bundles) >= REMEMBERED:
                self._bundles.clear()
            self._bundles[key] = self.connection.bundle(arrival, run)
        return self._bundles[key]

    def _heed(self, asked: Order) -> None:
        """Keeps the server's word on which receipts it has seen; tells where it differs."""
        mark = Countersignature(asked.receipt, asked.receipt_signature, asked.receipt_certificate)
        house = self.house
        if warning := note(house.state, house.name, needed_bytes(house.kit.ca), mark):
            house.say(warning)

    def _prepared(self, case: Case, plan: str, pin: Pin) -> Pin:
        """The cache is made by installed code; the pin remembers the split."""
        split, left_out = self.house.prepare(plan, case.run)
        made = pins.split_again(pin, split, left_out)
        pins.keep(self.house.guard, case.run, made)
        return made

    def _near(self, case: Case, pin: Pin, policy: Policy, reply: exit.Reply) -> frozenset[Cell]:
        """Scores of a personal phase that, with earlier ones, would tell of a few cases."""
        asked = case.asked
        if asked is None or asked.phase is None or asked.phase.share != "none":
            return frozenset()
        phase = asked.phase
        for split in ("val", "test"):
            if reply.metrics.get(f"{split}.n"):
                entries = self.house.entries(asked.plan, phase, pin.split, split)
                case.scored |= cells_of(split, phase.organs, entries)
        cell = max(policy.min_cell, asked.plan.federation.min_cell)
        near = too_near(self.house.guard, cell, case.scored) if policy.scores else frozenset()
        if near:
            told = ", ".join(f"{split} of {organ}" for split, organ in sorted(near))
            why = f"beside scores that left before they would tell of fewer than {cell} cases"
            self.log.add(f"kept back: {told}: {why}\n")
            self._say(case, f"scores kept back ({told}): {why}")
        return near

    def _count(self, case: Case, pin: Pin, asked: order.Asked, metrics: Mapping[str, Any]) -> None:
        """Before an answer to an order of a phase leaves."""
        assert asked.phase is not None
        pins.keep_plan(self.house.guard, asked.plan)
        note_answer(self.house.guard, pin.plan, asked)
        if asked.kind == "train" and asked.phase.share != "none":
            remember_cases(self.house.guard, asked.phase, pin.split, case.entries or ())
        remember_scores(self.house.guard, case.scored, asked.phase.organs, metrics)
        made = replace(pin, answered=True, trained=with_trained(pin, asked))
        if made != pin:
            pins.keep(self.house.guard, case.run, made)

    def _require_entries(self, asked: order.Asked, policy: Policy, pin: Pin) -> Sequence[Entry]:
        """What the order would be worked on with is what the policy allows; training cases."""
        assert asked.phase is not None
        if self.house.name not in asked.phase.sites:
            raise PolicyError(f"phase {asked.phase.name}: not for this site")
        if not pin.split:
            raise PreparationError("E_STATE")
        require_order(policy, asked.plan, asked.phase, asked.order)
        require_unanswered(self.house.guard, policy, pin.plan, asked)
        require_onward(self.house.state, pin, asked)
        require_room(self.house.state, policy, asked)
        entries = self.house.entries(asked.plan, asked.phase, pin.split, "train")
        if asked.kind == "train":
            require_entries(policy, asked.plan, asked.phase, asked.order.round, entries)
            require_apart(policy, asked.phase, entries, self._beside(asked.plan, asked.phase, pin))
            if asked.phase.share != "none":
                guard = self.house.guard
                require_apart_from_earlier(guard, policy, asked.phase, pin.split, entries)
        return entries

    def _require_made(
        self,
        reply: exit.Reply,
        asked: order.Asked,
        policy: Policy,
        entries: Sequence[Entry] | None,
    ) -> None:
        """What was made has the floors too, once it is told which steps were left out."""
        if asked.kind != "train" or asked.phase is None or reply.config.get("code") != OK:
            return
        taken, left_out = (reply.metrics.get(name) for name in ("steps", "skipped"))
        if type(taken) is not int or type(left_out) is not int or min(taken, left_out) < 0:
            raise OutboxError("metrics: steps or skipped")
        require_taken(policy, asked.plan, asked.phase, entries or (), (taken, left_out))

    def _beside(self, plan: Plan, phase: Phase, pin: Pin) -> dict[str, Sequence[Entry]]:
        """Training cases of other phases whose updates leave, where a cut sets them apart."""
        house = self.house
        return {
            other.name: house.entries(plan, other, pin.split, "train")
            for other in plan.phases
            if other.name != phase.name
            and house.name in other.sites
            and "none" not in (phase.share, other.share)
            and other.rounds > 0
            and (phase.max_cases is not None or other.max_cases is not None)
        }

    def _worked_on(
        self,
        asked: order.Asked,
        settings: Mapping[str, str],
        records: Mapping[str, Any],
        pin: Pin,
        policy: Policy,
        content: bytes,
    ) -> exit.Reply:
        house = self.house
        code = self._code(content)
        run_folder, base_folder = house.state / asked.run, house.state / "base"
        devices = [str(device) for device in house.devices]
        for folder in (run_folder, base_folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._workers.taken() as worker:
            task = {
                "kind": asked.kind,
                "code": str(code),
                "devices": devices,
                "gpu_memory_share": policy.gpu_memory_share,
                "walls": walls_of(
                    policy,
                    devices,
                    read=(code, house.cache),
                    write=(run_folder, base_folder, worker.scratch),
                    secrets=(house.kit.folder, *(house.guard / f for f in SECRET)),
                ),
                "records": {"order": asked.order.to_config()},
                "run_config": dict.fromkeys(SETTINGS, "")
                | {key: settings[key] for key in ("plan", "run_id")},
                "node_config": {"site": house.describe(asked.run, pin)},
            }
            blobs = {name: records[name] for name in order.HANDED_ON if name in records}
            limits = closed.Limits(policy.longest_s, exit.plan_bytes(asked.plan))
            values, out = worker.work(task, blobs, limits)
        return _reply_of(values, out)

    def _code(self, content: bytes) -> Path:
        """The approved bundle's folder, compared with it each time."""
        root = self.house.guard / "code"
        known = sorted(root.iterdir()) if root.is_dir() else []
        if len(known) == 1 and is_intact(content, known[0]):
            return known[0]
        return fresh_folder(content, root)

    def _refuse(
        self, error: Exception, case: Case, code: str, *, quiet: bool = False
    ) -> exit.Reply:
        self.log.error(error)
        if not quiet:
            plain = isinstance(error, PolicyError | WeightsError)
            about = str(error) if plain else "see client.log"
            kind = type(error).__name__
            self._say(case, f"not done, the server is told {code}: {kind}, {about}")
        name = self.house.name
        return exit.refusal(code, name, case.asked, receipts=self.receipts, run=case.run)

    def _note(self, case: Case, code: str = "") -> None:
        """Notes the order at work, and how it ended, for `hnfed watch` here."""
        if case.asked is None:
            return
        phase, told = case.asked.phase, case.asked.order
        standing.note(
            self.house.guard / standing.WORK,
            {
                "run": case.run,
                "phase": phase.name if phase else "",
                "organs": list(phase.organs) if phase else [],
                "rounds": phase.rounds if phase else 0,
                "round": told.round if phase else 0,
                "task": told.task if phase else case.asked.kind,
                "begun": case.begun,
                "done": code or None,
            },
        )

    def _say(self, case: Case, what: str) -> None:
        asked = case.asked
        if asked is None or asked.phase is None:
            task = "who is there"
        else:
            task = f"{asked.phase.name} round {asked.order.round}, {asked.order.task}"
        self.house.say(f"run {case.run or '?'}: {task}: {what}")


@dataclass
class Case:
    """How far one message came.

    Attributes:
        run: checked id of its run; "" before that.
        asked: its order, once it was read.
        entries: training cases that its phase uses here, once they were counted.
        scored: cases behind the scores of a personal phase that it asks for.
        pulled: whether its content was fetched, and with that confirmed.
        begun: when it came, seconds since 1970.
    """

    run: str = ""
    asked: order.Asked | None = None
    entries: Sequence[Entry] | None = None
    scored: Cells = field(default_factory=dict)
    pulled: bool = False
    begun: float = field(default_factory=time.time)


def _bytes_of(records: Mapping[str, Any], name: str) -> bytes:
    """A parcel of a message; b"" where there is none."""
    content = records.get(name)
    return content if isinstance(content, bytes) else b""


def _reply_of(values: Mapping[str, Any], out: Mapping[str, bytes]) -> exit.Reply:
    """The worker's answer, if it has the form of one."""
    records = values.get("records")
    known = isinstance(records, dict) and set(records) == {"header", "metrics"}
    if not isinstance(records, dict) or not known or set(out) - {"arrays"}:
        raise OutboxError("records: not a header, numbers and one parcel")
    header, metrics = records["header"], records["metrics"]
    if not isinstance(header, dict) or not isinstance(metrics, dict):
        raise OutboxError("records: a header or numbers of another form")
    return exit.Reply(header, metrics, out.get("arrays", b""))


def _needs_base(asked: order.Asked) -> Header:
    told = asked.order
    return Header(asked.site, told.run, told.phase, told.round, NEED_BASE)


def _with_startup(reply: exit.Reply, passed_s: float) -> exit.Reply:
    """The reply with how long all but the work itself took."""
    seconds = reply.metrics.get("seconds")
    if "startup" not in reply.metrics:
        return reply
    if type(seconds) is not float or not math.isfinite(seconds) or seconds < 0:
        raise OutboxError("metrics: startup beside seconds that are none")
    startup = max(passed_s - seconds, 0.0)
    return exit.Reply(reply.config, {**reply.metrics, "startup": startup}, reply.parcel)


def _told(reply: exit.Reply) -> str:
    code = reply.config["code"]
    return "answered" if code == "OK" else f"not done, the server is told {code}; see client.log"
