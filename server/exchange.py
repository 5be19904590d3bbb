"""One exchange with the sites: push, wait, hand the base to a site that lacks it (D8)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError

from core.wire.messages import NEED_BASE
from server.strategy import BASE, HEADER

POLL_SECONDS = 0.1
UNREADABLE = 9001  # stands beside Flower's own codes of errors
# What Flower raises while it reads a message that a site made wrong; its network has other errors.
MALFORMED: tuple[type[Exception], ...] = (
    ValueError, TypeError, LookupError, AttributeError, AssertionError, EOFError,
    ArithmeticError, RecursionError, DecodeError,
)  # fmt: skip


@dataclass
class Exchange:
    """What came back, in how many bytes and seconds.

    Attributes:
        replies: by site; a site that did not answer before the deadline is absent.
        sent, received: bytes by site.
        seconds: from the first push to the reply, by site.
        moving: seconds in which messages and their arrays went to and from Flower's server here:
            all pushes, and the pull that brought the last reply.
        lasted: seconds of the whole exchange, and of those before it in the same round.
    """

    replies: dict[str, Message] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    received: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    moving: float = 0.0
    lasted: float = 0.0


@dataclass(frozen=True)
class Call:
    """What the messages of an exchange have in common.

    Attributes:
        kind: message type, such as ``train``.
        group: label of the round.
        timeout_s: deadline for the whole exchange.
        base: makes the base's arrays, if the phase has a base.
    """

    kind: str
    group: str
    timeout_s: float
    base: Callable[[], ArrayRecord] | None = None


def exchange(
    grid: Grid,
    contents: Mapping[str, RecordDict],
    nodes: Mapping[str, int],
    call: Call,
    *,
    seen: Callable[[str, Message], None] | None = None,
    answered: Callable[[str, Message], None] | None = None,
) -> Exchange:
    """Sends each site its content; collects the replies until all are in or the deadline is over.

    A reply ``NEED_BASE`` is answered here: the base is pushed to that node at once, within the same
    deadline and once at most.

    Args:
        grid: Flower's grid.
        contents: what to send, by site.
        nodes: node id by site.
        call: of what kind, and by when.
        seen: called with each reply and its site, those that ask for the base too.
        answered: called with each answer as it comes, before the next one is fetched: what it takes
            out of the message need not wait in memory for the other sites.
    """
    done = Exchange()
    started = time.monotonic()
    waiting: dict[str, str] = {}

    def push(site: str, content: RecordDict) -> None:
        message = Message(
            content, nodes[site], call.kind, group_id=call.group, ttl=call.timeout_s + 60.0
        )
        begun = time.monotonic()
        (identifier,) = list(grid.push_messages([message]))
        done.moving += time.monotonic() - begun
        done.sent[site] = done.sent.get(site, 0) + size_of(content)
        if identifier:
            waiting[identifier] = site

    for site in sorted(contents):
        push(site, contents[site])
    given: set[str] = set()
    pulled = 0.0
    while waiting:
        looked = time.monotonic()
        any_came = False
        for identifier, site in list(waiting.items()):
            begun = time.monotonic()
            reply = _pulled(grid, identifier, nodes[site], call)
            if reply is None:
                continue
            pulled, any_came = time.monotonic() - begun, True
            del waiting[identifier]
            if not reply.has_error():
                if seen is not None:
                    seen(site, reply)
                done.received[site] = done.received.get(site, 0) + size_of(reply.content)
                if call.base is not None and site not in given and _needs_base(reply):
                    given.add(site)
                    content = RecordDict(dict(contents[site]))
                    content[BASE] = call.base()
                    push(site, content)
                    continue
            done.replies[site] = reply
            done.seconds[site] = time.monotonic() - started
            if answered is not None:
                answered(site, reply)
        now = time.monotonic()
        if not any_came and now - started >= call.timeout_s:
            break
        if waiting and not any_came:
            time.sleep(_pause(now - looked, now - started))
    done.moving += pulled
    done.lasted = time.monotonic() - started
    return done


def _pulled(grid: Grid, identifier: str, node: int, call: Call) -> Message | None:
    """The reply to a message; None while there is none. One that cannot be read is an error.

    Flower hands over with it whatever a node sends here unasked, under a sender and in words of its
    own choosing. So a reply is what names the message, which nobody but its site has seen. Of a
    message whose reply is used up Flower says so: what could not be read was the reply, or not.
    """
    with suppress(*MALFORMED):
        return _reply(grid, identifier)
    with suppress(*MALFORMED):
        reply = _reply(grid, identifier)
        if reply is None or not reply.has_error():
            return reply
        asked = Message(RecordDict(), node, call.kind)  # what was sent need not be held for this
        return Message(Error(UNREADABLE), reply_to=asked)
    return None


def _reply(grid: Grid, identifier: str) -> Message | None:
    for reply in list(grid.pull_messages([identifier])):
        if reply.metadata.reply_to_message_id == identifier:
            if not reply.has_error():
                size_of(reply.content)
            return reply
    return None


def _pause(asking: float, waited: float) -> float:
    """Seconds until the sites are asked after again: each is a call that Flower's server answers.

    Asking takes a tenth of the time at most, however many sites there are, and a reply lies no
    longer than a second, or a hundredth of what was waited for it.
    """
    return max(POLL_SECONDS, 9 * asking, min(waited / 100, 1.0))


def record_of(parcel: bytes) -> ArrayRecord:
    """The record that carries a parcel of weights (`core.wire.state`)."""
    return ArrayRecord({"weights": Array("uint8", (len(parcel),), "safetensors", parcel)})


def size_of(content: RecordDict) -> int:
    """Bytes of the arrays, and eight for each number or letter-sized scalar beside them."""
    total = 0
    for value in (v for record in content.values() for v in record.values()):
        if isinstance(value, Array):
            total += len(value.data)
        elif isinstance(value, str | bytes):
            total += len(value)
        else:
            total += 8 * len(value) if isinstance(value, list) else 8
    return total


def _needs_base(reply: Message) -> bool:
    header = reply.content.get(HEADER)
    return isinstance(header, ConfigRecord) and header.get("code") == NEED_BASE
