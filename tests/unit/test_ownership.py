"""Who may use which sandbox: the rules of the registry, without any database."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from sandbox.core.owner import Caller, Owner, run_as
from sandbox.core.ownership import PASS_THROUGH, Mode, PassThrough, Registry, Shared
from sandbox.errors import (
    AlreadyOwnerError,
    AlreadySharedError,
    NotFoundError,
    NotOwnerError,
    OwnerExitedError,
    OwnershipError,
)

T = TypeVar("T")
DB, OTHER = "db", "other"


@pytest.fixture
def registry() -> Registry[str]:
    registry: Registry[str] = Registry()
    registry.know(DB, "the database")
    registry.know(OTHER, "the other database")
    registry.set_mode(DB, Mode.MANUAL)
    return registry


@pytest.fixture
def owner(registry: Registry[str]) -> Owner:
    """Somebody else, with a sandbox of DB; the tests themselves own nothing."""
    return checked_out(registry, "first test", "sandbox")


def checked_out(registry: Registry[str], label: str, sandbox: str, database: str = DB) -> Owner:
    owner = Owner(label)
    registry.checkout(owner, database, sandbox)
    return owner


def in_thread(call: Callable[[], T], name: str = "worker") -> T:
    """What the call returns or raises in a thread that is nobody's."""
    outcome: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name=name)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return outcome[0]


class Waiting:
    """A thread that looks the database up each time it is told to."""

    def __init__(self, registry: Registry[str]) -> None:
        self._registry = registry
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._stop = False
        self.answer: object = None
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while self._go.acquire() and not self._stop:
            try:
                self.answer = self._registry.find(DB)
            except OwnershipError as error:
                self.answer = type(error)
            self._done.release()

    def __enter__(self) -> Waiting:
        return self

    def start(self) -> None:
        self.thread.start()

    def look(self) -> object:
        self._go.release()
        assert self._done.acquire(timeout=20)
        return self.answer

    def __exit__(self, *exc: object) -> None:
        self._stop = True
        self._go.release()
        if self.thread.ident is not None:
            self.thread.join()


@pytest.fixture
def waiting(registry: Registry[str]) -> Iterator[Waiting]:
    with Waiting(registry) as waiting:
        yield waiting


# --- owning ------------------------------------------------------------------------------------


def test_an_owner_finds_its_own(registry: Registry[str], owner: Owner) -> None:
    with run_as(owner):
        assert registry.find(DB) == "sandbox"
        assert registry.find(OTHER) is PASS_THROUGH


def test_one_owner_has_one_sandbox_of_a_database(registry: Registry[str], owner: Owner) -> None:
    with pytest.raises(AlreadyOwnerError, match="first test has already checked out the database"):
        registry.checkout(owner, DB, "second")
    registry.checkout(owner, OTHER, "of the other")
    assert registry.holdings(owner) == [(DB, "sandbox"), (OTHER, "of the other")]
    assert registry.held() == ["sandbox", "of the other"]


def test_two_owners_have_a_sandbox_each(registry: Registry[str], owner: Owner) -> None:
    second = checked_out(registry, "second test", "another")
    for who, sandbox in (owner, "sandbox"), (second, "another"):
        with run_as(who):
            assert registry.find(DB) == sandbox


def test_what_was_checked_in_is_found_no_more(registry: Registry[str], owner: Owner) -> None:
    assert registry.checkin(owner, DB) == "sandbox"
    assert owner.ended
    with pytest.raises(NotFoundError, match="first test has nothing checked out"):
        registry.checkin(owner, DB)
    assert registry.held() == []


def test_an_owner_ends_with_its_last_sandbox(registry: Registry[str], owner: Owner) -> None:
    registry.checkout(owner, OTHER, "of the other")
    registry.checkin(owner, DB)
    assert not owner.ended
    registry.checkin(owner, OTHER)
    assert owner.ended


def test_an_owner_may_begin_again(registry: Registry[str], owner: Owner) -> None:
    registry.checkin(owner, DB)
    registry.checkout(owner, DB, "again")
    with run_as(owner):
        assert registry.find(DB) == "again"


def test_databases_that_are_not_watched_pass(registry: Registry[str]) -> None:
    assert not registry.knows("unknown")
    assert registry.find("unknown") is PASS_THROUGH


def test_only_databases_in_use_are_remembered(registry: Registry[str], owner: Owner) -> None:
    registry.forget()
    assert (registry.knows(DB), registry.knows(OTHER)) == (True, False)
    registry.checkin(owner, DB)
    registry.forget()
    assert not registry.knows(DB)


# --- modes -------------------------------------------------------------------------------------


def test_manual_refuses_strangers_and_says_what_to_do(
    registry: Registry[str], owner: Owner
) -> None:
    checked_out(registry, "second test", "another")
    with pytest.raises(OwnershipError) as caught:
        in_thread(lambda: registry.find(DB), name="mailer")
    message = str(caught.value)
    for said in (
        "thread 'mailer' may not use the database",
        "The mode is 'manual'",
        "Owners now: first test, second test.",
        "1. Check out",
        "2. Let an owner vouch",
        "3. Carry the owner along",
        "4. Share one sandbox",
        "docs/reference/errors.md#ownershiperror",
    ):
        assert said in message


def test_a_refused_task_is_named(registry: Registry[str]) -> None:
    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.set_name("poller")
        with pytest.raises(OwnershipError, match="task 'poller' of thread 'MainThread' may not"):
            registry.find(DB)

    asyncio.run(main())


def test_auto_lets_strangers_through(registry: Registry[str], owner: Owner) -> None:
    registry.set_mode(DB, Mode.AUTO)
    assert registry.mode(DB) is Mode.AUTO
    assert registry.find(DB) is PASS_THROUGH
    assert in_thread(lambda: registry.find(DB)) is PASS_THROUGH
    with run_as(owner):
        assert registry.find(DB) == "sandbox"


def test_nobody_chose_a_mode_strangers_pass_while_nobody_is_sandboxed() -> None:
    registry: Registry[str] = Registry()
    registry.know(DB, "the database")
    assert registry.find(DB) is PASS_THROUGH
    owner = checked_out(registry, "first test", "sandbox")
    with pytest.raises(OwnershipError, match="While somebody has it checked out"):
        registry.find(DB)
    registry.checkin(owner, DB)
    assert registry.find(DB) is PASS_THROUGH


def test_to_know_a_database_again_changes_nothing(registry: Registry[str], owner: Owner) -> None:
    registry.know(DB, "the database")
    assert registry.mode(DB) is Mode.MANUAL
    with run_as(owner):
        assert registry.find(DB) == "sandbox"


@pytest.mark.parametrize("mode", Mode)
def test_who_outlived_its_test_is_refused_even_in_auto(
    registry: Registry[str], owner: Owner, mode: Mode
) -> None:
    registry.set_mode(DB, mode)
    registry.checkin(owner, DB)
    with run_as(owner):
        with pytest.raises(OwnerExitedError, match="belongs to first test, which has ended"):
            registry.find(DB)
        with pytest.raises(OwnerExitedError):
            registry.find(OTHER)


# --- sharing -----------------------------------------------------------------------------------


def test_a_shared_sandbox_is_everybodys(registry: Registry[str], owner: Owner) -> None:
    second = checked_out(registry, "second test", "another")
    registry.set_mode(DB, Shared(owner))
    assert registry.mode(DB) == Shared(owner)
    assert registry.find(DB) == "sandbox"
    assert in_thread(lambda: registry.find(DB)) == "sandbox"
    with run_as(second):
        assert registry.find(DB) == "another", "one's own comes first"


def test_one_at_a_time_shares(registry: Registry[str], owner: Owner) -> None:
    second = checked_out(registry, "second test", "another")
    registry.set_mode(DB, Shared(owner))
    registry.set_mode(DB, Shared(owner))
    with pytest.raises(AlreadySharedError, match=r"second test cannot share .*: first test shares"):
        registry.set_mode(DB, Shared(second))
    assert registry.find(DB) == "sandbox"


def test_who_has_nothing_cannot_share(registry: Registry[str]) -> None:
    with pytest.raises(NotFoundError, match="nobody cannot share the database"):
        registry.set_mode(DB, Shared(Owner("nobody")))
    assert registry.mode(DB) is Mode.MANUAL


@pytest.mark.parametrize("mode", Mode)
def test_sharing_ends_with_the_check_in(registry: Registry[str], owner: Owner, mode: Mode) -> None:
    registry.set_mode(DB, mode)
    registry.set_mode(DB, Shared(owner))
    registry.checkin(owner, DB)
    assert registry.mode(DB) is mode
    second = checked_out(registry, "second test", "another")
    registry.set_mode(DB, Shared(second))
    assert registry.find(DB) == "another"


def test_another_mode_ends_sharing(registry: Registry[str], owner: Owner) -> None:
    registry.set_mode(DB, Shared(owner))
    registry.set_mode(DB, Mode.MANUAL)
    with pytest.raises(OwnershipError):
        registry.find(DB)


def test_sharing_is_of_one_database(registry: Registry[str], owner: Owner) -> None:
    registry.set_mode(OTHER, Mode.MANUAL)
    registry.set_mode(DB, Shared(owner))
    with pytest.raises(OwnershipError):
        registry.find(OTHER)


# --- allowing ----------------------------------------------------------------------------------


def test_an_allowed_thread_uses_the_owners(
    registry: Registry[str], owner: Owner, waiting: Waiting
) -> None:
    registry.allow(owner, waiting.thread)  # before it starts
    waiting.start()
    assert waiting.look() == "sandbox"
    with pytest.raises(OwnershipError):
        registry.find(DB)


def test_a_thread_is_allowed_while_it_runs(
    registry: Registry[str], owner: Owner, waiting: Waiting
) -> None:
    waiting.start()
    assert waiting.look() is OwnershipError
    registry.allow(owner, waiting.thread)
    assert waiting.look() == "sandbox"
    registry.unallow(waiting.thread)
    assert waiting.look() is OwnershipError


def test_an_allowed_task_uses_the_owners_and_its_siblings_do_not(
    registry: Registry[str], owner: Owner
) -> None:
    async def look() -> str | PassThrough:
        return registry.find(DB)

    async def main() -> None:
        task, sibling = asyncio.create_task(look()), asyncio.create_task(look())
        registry.allow(owner, task)
        assert await task == "sandbox"
        with pytest.raises(OwnershipError):
            await sibling

    asyncio.run(main())


def test_threads_are_allowed_by_name(registry: Registry[str], owner: Owner) -> None:
    registry.allow(owner, "celery-*")
    assert in_thread(lambda: registry.find(DB), name="celery-7") == "sandbox"
    with pytest.raises(OwnershipError):
        in_thread(lambda: registry.find(DB), name="Celery-7")


def test_a_predicate_is_asked_in_the_calling_thread(registry: Registry[str], owner: Owner) -> None:
    asked: list[str] = []

    def vouched() -> bool:
        asked.append(threading.current_thread().name)
        return asked[-1] == "known"

    registry.allow(owner, vouched)
    assert in_thread(lambda: registry.find(DB), name="known") == "sandbox"
    with pytest.raises(OwnershipError):
        in_thread(lambda: registry.find(DB), name="unknown")
    assert asked == ["known", "unknown"]


def test_a_predicate_may_use_the_registry(registry: Registry[str], owner: Owner) -> None:
    registry.allow(owner, lambda: bool(registry.holdings(owner)))
    assert in_thread(lambda: registry.find(DB)) == "sandbox"


def test_an_allowed_one_allows_for_the_original_owner(
    registry: Registry[str], owner: Owner, waiting: Waiting
) -> None:
    between = threading.Thread(name="between")
    registry.allow(owner, between)
    vouching = registry.owner_of(between)
    assert vouching is owner
    registry.allow(vouching, waiting.thread)
    registry.unallow(between)
    waiting.start()
    assert waiting.look() == "sandbox"
    registry.checkin(owner, DB)
    assert waiting.look() is OwnershipError


def test_allowing_again_is_no_error_and_leaves_one(
    registry: Registry[str], owner: Owner, waiting: Waiting
) -> None:
    registry.allow(owner, waiting.thread)
    registry.allow(owner, waiting.thread)
    registry.unallow(waiting.thread)
    waiting.start()
    assert waiting.look() is OwnershipError


def test_one_child_has_one_owner(registry: Registry[str], owner: Owner, waiting: Waiting) -> None:
    second = checked_out(registry, "second test", "another")
    registry.allow(owner, waiting.thread)
    with pytest.raises(AlreadyOwnerError, match="the sandbox of first test already"):
        registry.allow(second, waiting.thread)
    waiting.start()
    assert waiting.look() == "sandbox"
    registry.allow(second, waiting.thread, unallow_existing=True)
    assert waiting.look() == "another"
    registry.checkin(owner, DB)
    assert waiting.look() == "another", "the former owner's end takes nothing away"


def test_databases_are_allowed_one_by_one(
    registry: Registry[str], owner: Owner, waiting: Waiting
) -> None:
    registry.checkout(owner, OTHER, "of the other")
    registry.allow(owner, waiting.thread, DB)
    registry.allow(owner, waiting.thread, OTHER)
    waiting.start()
    assert waiting.look() == "sandbox"
    registry.unallow(waiting.thread, DB)
    assert waiting.look() is OwnershipError
    registry.unallow(waiting.thread, OTHER)


def test_one_database_does_not_narrow_what_all_were_allowed(
    registry: Registry[str], owner: Owner, waiting: Waiting
) -> None:
    registry.allow(owner, waiting.thread)
    registry.allow(owner, waiting.thread, OTHER)
    waiting.start()
    assert waiting.look() == "sandbox"


def test_two_owners_may_allow_one_child_in_two_databases(
    registry: Registry[str], owner: Owner, waiting: Waiting
) -> None:
    second = checked_out(registry, "second test", "of the other", OTHER)
    registry.allow(owner, waiting.thread, DB)
    registry.allow(second, waiting.thread, OTHER)
    with pytest.raises(AlreadyOwnerError):
        registry.allow(second, waiting.thread)
    waiting.start()
    assert waiting.look() == "sandbox"


def test_a_refused_allowance_changes_nothing(
    registry: Registry[str], owner: Owner, waiting: Waiting
) -> None:
    second = checked_out(registry, "second test", "another")
    registry.checkout(second, OTHER, "of the other")
    registry.allow(second, waiting.thread, OTHER)
    registry.allow(owner, waiting.thread, DB)
    with pytest.raises(AlreadyOwnerError):
        registry.allow(second, waiting.thread)
    registry.unallow(waiting.thread, OTHER)


def test_allowances_end_with_their_owner(
    registry: Registry[str], owner: Owner, waiting: Waiting
) -> None:
    registry.allow(owner, waiting.thread)
    registry.allow(owner, "celery-*")
    registry.checkin(owner, DB)
    registry.checkout(owner, DB, "again")
    waiting.start()
    assert waiting.look() is OwnershipError
    with pytest.raises(OwnershipError):
        in_thread(lambda: registry.find(DB), name="celery-1")
    with pytest.raises(NotFoundError):
        registry.unallow("celery-*")


def test_checking_in_one_database_keeps_what_the_others_allow(
    registry: Registry[str], owner: Owner, waiting: Waiting
) -> None:
    registry.checkout(owner, OTHER, "of the other")
    registry.allow(owner, waiting.thread)
    registry.allow(owner, "celery-*", OTHER)
    registry.checkin(owner, OTHER)
    waiting.start()
    assert waiting.look() == "sandbox"
    with pytest.raises(NotFoundError):
        registry.unallow("celery-*")


def test_allowed_comes_before_shared(registry: Registry[str], owner: Owner) -> None:
    second = checked_out(registry, "second test", "another")
    registry.set_mode(DB, Shared(second))
    registry.allow(owner, "worker")
    assert in_thread(lambda: registry.find(DB)) == "sandbox"


def test_an_allowed_thread_that_belongs_to_an_earlier_test_is_let_in(
    registry: Registry[str], owner: Owner
) -> None:
    earlier = checked_out(registry, "earlier test", "gone")
    registry.checkin(earlier, DB)
    registry.allow(owner, "worker")

    def as_earlier() -> str | PassThrough:
        with run_as(earlier):
            return registry.find(DB)

    assert in_thread(as_earlier) == "sandbox"


def test_unallow_needs_an_allowance(registry: Registry[str]) -> None:
    with pytest.raises(NotFoundError, match=r"'celery-.' was not allowed"):
        registry.unallow("celery-*")


# --- whose ----------------------------------------------------------------------------------------


def test_an_owner_is_found_by_the_thread_that_made_it(registry: Registry[str]) -> None:
    owner = checked_out(registry, "first test", "sandbox")
    assert registry.owner_of(threading.current_thread()) is owner
    with pytest.raises(NotFoundError, match="has no sandbox that it could allow"):
        registry.owner_of(threading.Thread())


def test_an_owner_is_found_by_the_task_that_made_it(registry: Registry[str]) -> None:
    async def main() -> None:
        owner = checked_out(registry, "first test", "sandbox")
        assert registry.owner_of(asyncio.current_task()) is owner

    asyncio.run(main())


def test_nobody_is_no_owner(registry: Registry[str]) -> None:
    """Not even of what a thread made, or was allowed, that is gone since."""
    owner = in_thread(lambda: checked_out(registry, "first test", "sandbox"))
    registry.allow(owner, threading.Thread())
    gc.collect()
    with pytest.raises(NotFoundError):
        registry.owner_of(None)


def test_an_owner_with_nothing_left_cannot_allow(registry: Registry[str], owner: Owner) -> None:
    registry.checkin(owner, DB)
    with pytest.raises(NotFoundError, match="first test has no sandbox that it could allow"):
        registry.owner_of(owner)


def test_only_owners_may(registry: Registry[str], owner: Owner) -> None:
    with run_as(owner):
        assert registry.require_own(DB) is owner
        with pytest.raises(NotFoundError, match="nothing checked out of the other database"):
            registry.require_own(OTHER)
    with pytest.raises(NotFoundError, match="nothing checked out of the database"):
        registry.require_own(DB)
    with pytest.raises(NotFoundError, match="nothing checked out of unknown"):
        registry.require_own("unknown")


def test_who_was_allowed_is_told_whose_it_is(registry: Registry[str], owner: Owner) -> None:
    registry.allow(owner, "worker")
    with pytest.raises(NotOwnerError, match=r"thread 'worker' may use .* belongs to first test"):
        in_thread(lambda: registry.require_own(DB))


def test_who_shares_is_told_whose_it_is(registry: Registry[str], owner: Owner) -> None:
    registry.set_mode(DB, Shared(owner))
    with pytest.raises(NotOwnerError, match="belongs to first test"):
        registry.require_own(DB)


# --- nothing stays --------------------------------------------------------------------------------


def test_a_thread_never_finds_what_an_earlier_one_had(registry: Registry[str]) -> None:
    """The system uses idents again, usually at once."""
    idents: set[int] = set()

    def look() -> None:
        idents.add(threading.get_ident())
        registry.find(DB)

    for number in range(50):
        thread = threading.Thread(target=lambda: idents.add(threading.get_ident()))
        owner = checked_out(registry, f"test {number}", "sandbox")
        registry.allow(owner, thread)
        thread.start()
        thread.join()
        with pytest.raises(OwnershipError):
            in_thread(look)
        registry.checkin(owner, DB)
    assert len(idents) < 100, "no ident came twice: nothing was tried"


def test_an_allowance_keeps_no_thread_alive(registry: Registry[str], owner: Owner) -> None:
    thread = threading.Thread()
    watched = weakref.ref(thread)
    registry.allow(owner, thread)
    thread.start()
    thread.join()
    del thread
    gc.collect()
    assert watched() is None
    with pytest.raises(OwnershipError):
        registry.find(DB)


def test_an_allowance_keeps_no_task_alive(registry: Registry[str], owner: Owner) -> None:
    async def main() -> weakref.ref[asyncio.Task[bool]]:
        task = asyncio.create_task(asyncio.Event().wait())
        registry.allow(owner, task)
        task.cancel()
        await asyncio.wait([task])
        return weakref.ref(task)

    watched = asyncio.run(main())
    gc.collect()
    assert watched() is None


def test_a_registry_keeps_no_owner_alive(registry: Registry[str]) -> None:
    owner = checked_out(registry, "first test", "sandbox")
    registry.allow(owner, "celery-*")
    registry.set_mode(DB, Shared(owner))
    registry.checkin(owner, DB)
    watched = weakref.ref(owner)
    del owner
    gc.collect()
    assert watched() is None


def test_allowances_of_those_who_are_gone_do_not_pile_up(
    registry: Registry[str], owner: Owner
) -> None:
    for _ in range(100):
        registry.allow(owner, threading.Thread())
    gc.collect()
    registry.allow(owner, "celery-*")
    assert len(registry._allowances) == 1


def test_look_ups_from_many_threads_while_owners_come_and_go(registry: Registry[str]) -> None:
    """Every look-up is answered by the caller's own sandbox, whatever the others do."""
    barrier, wrong = threading.Barrier(4), []

    def work(name: str) -> None:
        barrier.wait()
        for number in range(200):
            owner = checked_out(registry, name, f"{name} {number}")
            registry.allow(owner, f"{name}-*")
            with run_as(owner):
                if registry.find(DB) != f"{name} {number}":
                    wrong.append(name)
            registry.checkin(owner, DB)

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert registry.held() == []


def test_a_caller_is_named_by_task_and_thread() -> None:
    assert str(Caller()) == "thread 'MainThread'"
