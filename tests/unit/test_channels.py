"""Notifications within one sandbox: who hears what, in which order, and who is woken."""

from __future__ import annotations

import asyncio
import gc
import select
import threading
import time
import warnings
from collections.abc import Callable, Iterator

import pytest

from sandbox.connection import channels
from sandbox.connection.channels import Channels, Inbox, Notification
from sandbox.core.effects import Close, Listen, Notify, Unlisten
from sandbox.core.session import ServerSession
from sandbox.errors import OwnerExitedError, UndeliveredNotificationWarning

PATIENCE = 20.0
PID = 4711


@pytest.fixture(autouse=True)
def nobody_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "_told", set())


@pytest.fixture
def these() -> Iterator[Channels]:
    made = Channels("tests/test_shop.py::test_order")
    yield made
    made.close()


def listener(these: Channels, *names: str) -> tuple[ServerSession, Inbox]:
    session = ServerSession()
    these.commit(session, [Listen(name) for name in names], PID)
    return session, these.inbox(session)


def payloads(inbox: Inbox) -> list[str]:
    return [each.payload for each in inbox.take()]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0)


def waiting(inbox: Inbox) -> int:
    return len(inbox._bells)


# -- who hears what ------------------------------------------------------------------------------


def test_everybody_who_listens_hears_in_the_order_of_commits(these: Channels) -> None:
    first, second = listener(these, "a", "b"), listener(these, "b")
    sender = ServerSession()
    these.commit(sender, [Notify("b", "1"), Close(None), Notify("a", "2")], PID)
    these.commit(sender, [Notify("b", "3")], PID)
    assert first[1].take() == [
        Notification("b", "1", PID),
        Notification("a", "2", PID),
        Notification("b", "3", PID),
    ]
    assert payloads(second[1]) == ["1", "3"]
    assert payloads(second[1]) == []


def test_a_sender_that_listens_hears_itself(these: Channels) -> None:
    session, inbox = listener(these, "a")
    these.commit(session, [Notify("a", "mine")], PID)
    assert payloads(inbox) == ["mine"]


def test_what_a_transaction_says_twice_is_heard_once(these: Channels) -> None:
    _, inbox = listener(these, "a", "b")
    sender = ServerSession()
    these.commit(
        sender, [Notify("a", "x"), Notify("a", "y"), Notify("a", "x"), Notify("b", "x")], PID
    )
    these.commit(sender, [Notify("a", "x")], PID)
    assert [(each.channel, each.payload) for each in inbox.take()] == [
        ("a", "x"),
        ("a", "y"),
        ("b", "x"),
        ("a", "x"),
    ]


def test_listen_takes_effect_at_the_commit_whatever_its_place(these: Channels) -> None:
    session = ServerSession()
    inbox = these.inbox(session)
    these.commit(session, [Notify("a", "before"), Listen("a"), Notify("a", "after")], PID)
    assert payloads(inbox) == ["before", "after"]


def test_unlisten_ends_one_channel_or_all(these: Channels) -> None:
    session, inbox = listener(these, "a", "b", "c")
    other = listener(these, "a", "b", "c")
    sender = ServerSession()
    these.commit(session, [Unlisten("a")], PID)
    these.commit(sender, [Notify("a", "1"), Notify("b", "2")], PID)
    assert payloads(inbox) == ["2"]
    these.commit(session, [Unlisten(None)], PID)
    these.commit(sender, [Notify("b", "3"), Notify("c", "4")], PID)
    assert payloads(inbox) == []
    assert payloads(other[1]) == ["1", "2", "3", "4"]


def test_two_sandboxes_do_not_hear_each_other(these: Channels) -> None:
    others = Channels("another test")
    _, here = listener(these, "a")
    _, there = listener(others, "a")
    these.commit(ServerSession(), [Notify("a", "here")], PID)
    assert (payloads(here), payloads(there)) == (["here"], [])
    others.close()


def test_a_connection_that_was_closed_listens_no_more(these: Channels) -> None:
    session, inbox = listener(these, "a")
    _, other = listener(these, "a")
    these.forget(session)
    assert (inbox.closed, session.channels) == (True, set())
    these.commit(ServerSession(), [Notify("a", "x")], PID)
    assert payloads(other) == ["x"]


def test_a_connection_can_be_forgotten_in_the_middle_of_anything(these: Channels) -> None:
    """As by the garbage collector, which may strike wherever something is made."""
    session, inbox = listener(these, "a")
    with these._lock:
        these.forget(session)
    assert not inbox.closed
    with pytest.warns(UndeliveredNotificationWarning):
        these.commit(ServerSession(), [Notify("a", "x")], PID)
    assert inbox.closed


def test_after_the_check_in_nobody_hears_anything(these: Channels) -> None:
    session, inbox = listener(these, "a")
    these.close()
    with pytest.raises(OwnerExitedError, match=r"test_order has ended.*Let listeners end"):
        inbox.check_open()
    late = these.inbox(ServerSession())
    assert late.closed
    inbox.put([Notification("a", "late", PID)])
    assert inbox.take() == []
    assert session.channels == set()


# -- what nobody hears -----------------------------------------------------------------------------


def test_what_nobody_hears_is_told_once_for_each_channel(these: Channels) -> None:
    sender, place = ServerSession(), "shop.py:12 (buy)"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        these.commit(sender, [Notify("orders", "1"), Notify("orders", "2")], PID, place)
        these.commit(sender, [Notify("orders", "3"), Notify("bills", "4")], PID, place)
    first, second = (str(each.message) for each in told)
    assert first.startswith("NOTIFY orders was not heard: shop.py:12 (buy) of tests/test_shop.py")
    assert 'isolation="database"' in first
    assert first.endswith("docs/reference/errors.md#undeliverednotificationwarning")
    assert second.startswith("NOTIFY bills was not heard")


def test_the_warning_can_be_ignored_for_one_channel(these: Channels) -> None:
    sender = ServerSession()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "NOTIFY orders ", UndeliveredNotificationWarning)
        these.commit(sender, [Notify("orders", "1")], PID)
        with pytest.raises(UndeliveredNotificationWarning):
            these.commit(sender, [Notify("bills", "1")], PID)


def test_where_warnings_are_errors_every_test_fails_alike(these: Channels) -> None:
    _, inbox = listener(these, "heard")
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(UndeliveredNotificationWarning):
                these.commit(ServerSession(), [Notify("unheard", "1"), Notify("heard", "1")], PID)
    assert payloads(inbox) == ["1", "1"]


def test_nothing_is_said_of_what_somebody_hears(these: Channels) -> None:
    listener(these, "a")
    these.commit(ServerSession(), [Notify("a", "x")], PID)


def test_a_payload_that_only_the_server_knows_is_not_guessed(these: Channels) -> None:
    _, inbox = listener(these, "a")
    with pytest.warns(UndeliveredNotificationWarning, match="only the server can evaluate"):
        these.commit(ServerSession(), [Notify("a", None), Notify("a", "known")], PID)
    assert payloads(inbox) == ["known"]


# -- waiting ---------------------------------------------------------------------------------------


def test_a_thread_that_waits_is_woken(these: Channels) -> None:
    _, inbox = listener(these, "a")
    heard: list[str] = []

    def wait() -> None:
        seen = inbox.stirred
        with inbox.bell(seen) as bell:
            assert bell.acquire(PATIENCE)
        heard.extend(payloads(inbox))

    threads = [threading.Thread(target=wait) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: waiting(inbox) == 2)
    these.commit(ServerSession(), [Notify("a", "x")], PID)
    for thread in threads:
        thread.join(PATIENCE)
    assert heard == ["x"]
    assert waiting(inbox) == 0


def test_what_came_since_the_last_look_is_not_waited_for(these: Channels) -> None:
    _, inbox = listener(these, "a")
    seen = inbox.stirred
    these.commit(ServerSession(), [Notify("a", "x")], PID)
    with inbox.bell(seen) as bell:
        assert bell.acquire(0)
    with inbox.bell(inbox.stirred) as bell:
        assert not bell.acquire(0.01)
    assert waiting(inbox) == 0


async def test_tasks_of_any_loop_are_woken(these: Channels) -> None:
    _, inbox = listener(these, "a")

    async def wait() -> bool:
        with inbox.bell(inbox.stirred) as bell:
            return await bell.acquire_async(PATIENCE)

    here = asyncio.create_task(wait())
    elsewhere = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(wait())))
    while waiting(inbox) < 2:
        await asyncio.sleep(0)
    await asyncio.to_thread(these.commit, ServerSession(), [Notify("a", "x")], PID)
    assert await asyncio.wait_for(here, PATIENCE)
    assert await asyncio.wait_for(elsewhere, PATIENCE)


async def test_a_waiter_that_is_cancelled_is_forgotten(these: Channels) -> None:
    _, inbox = listener(these, "a")

    async def wait() -> None:
        with inbox.bell(inbox.stirred) as bell:
            await bell.acquire_async()

    task = asyncio.create_task(wait())
    while not waiting(inbox):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert waiting(inbox) == 0


def test_the_check_in_wakes_who_waits(these: Channels) -> None:
    _, inbox = listener(these, "a")
    raised: list[BaseException] = []

    def wait() -> None:
        with inbox.bell(inbox.stirred) as bell:
            bell.acquire(PATIENCE)
        try:
            inbox.check_open()
        except OwnerExitedError as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: waiting(inbox) == 1)
    these.close()
    thread.join(PATIENCE)
    assert len(raised) == 1


def readable(inbox: Inbox) -> bool:
    return bool(select.select([inbox.fileno()], [], [], 0)[0])


def test_the_socket_can_be_read_from_while_something_is_unread(these: Channels) -> None:
    _, inbox = listener(these, "a")
    assert not readable(inbox)
    these.commit(ServerSession(), [Notify("a", "x")], PID)
    these.commit(ServerSession(), [Notify("a", "y")], PID)
    assert readable(inbox)
    assert payloads(inbox) == ["x", "y"]
    assert not readable(inbox)


def test_the_socket_tells_what_came_before_it_was_made(these: Channels) -> None:
    _, inbox = listener(these, "a")
    these.commit(ServerSession(), [Notify("a", "x")], PID)
    assert readable(inbox)


def test_a_socket_that_was_hushed_rings_at_the_next_change(these: Channels) -> None:
    _, inbox = listener(these, "a")
    these.commit(ServerSession(), [Notify("a", "x")], PID)
    assert readable(inbox)
    inbox.hush()
    assert not readable(inbox)
    inbox.stir()
    assert readable(inbox)
    assert payloads(inbox) == ["x"]


def test_the_check_in_wakes_who_selects(these: Channels) -> None:
    _, inbox = listener(these, "a")
    number = inbox.fileno()
    threading.Timer(0, these.close).start()
    assert select.select([number], [], [], PATIENCE)[0]
    inbox.take()
    assert readable(inbox), "whoever selects again learns it too"


def test_a_socket_is_closed_with_its_inbox() -> None:
    inbox = Inbox("a test")
    inbox.fileno()
    assert inbox._sockets is not None
    ends = inbox._sockets
    del inbox
    gc.collect()
    assert [end.fileno() for end in ends] == [-1, -1]


def test_thousands_of_notifications_do_not_hold_the_sender_up(these: Channels) -> None:
    _, inbox = listener(these, "a")
    inbox.fileno()
    for number in range(3000):
        these.commit(ServerSession(), [Notify("a", str(number))], PID)
    assert payloads(inbox) == [str(number) for number in range(3000)]
    assert not readable(inbox)


def test_what_was_taken_and_not_used_comes_first_again(these: Channels) -> None:
    _, inbox = listener(these, "a")
    these.commit(ServerSession(), [Notify("a", "1"), Notify("a", "2")], PID)
    taken = inbox.take()
    these.commit(ServerSession(), [Notify("a", "3")], PID)
    inbox.put_back(taken[1:])
    assert payloads(inbox) == ["2", "3"]


def test_many_senders_and_readers_lose_nothing(these: Channels) -> None:
    _, inbox = listener(these, "a")
    heard: list[str] = []
    each, senders = 200, 4

    def send(name: int) -> None:
        for number in range(each):
            these.commit(ServerSession(), [Notify("a", f"{name}:{number}")], PID)

    def read() -> None:
        while len(heard) < each * senders:
            seen = inbox.stirred
            found = payloads(inbox)
            heard.extend(found)
            if not found:
                with inbox.bell(seen) as bell:
                    bell.acquire(0.1)

    threads = [threading.Thread(target=read) for _ in range(2)]
    threads += [threading.Thread(target=send, args=(name,)) for name in range(senders)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(heard) == sorted(f"{s}:{n}" for s in range(senders) for n in range(each))
