"""The comparison's rows and what is expected of each world.

The expectations are those of the tables in ``docs/explanation/fidelity.md``, which are made from
what the runs gave.
"""

from __future__ import annotations

from tests.fidelity import commits
from tests.fidelity.interleaving import INTERLEAVING
from tests.fidelity.rows import SAME, Row

__all__ = ("COMMIT", "INTERLEAVING", "ROWS")

_ESCAPED = ("InvalidSavepointSpecification; LEAK", "TransactionManagementError; LEAK")

COMMIT = (
    Row(
        "F1: commits after a statement failed",
        commits.failed_commit,
        "rolled back, no error",
        "InFailedSqlTransaction at commit",
        "InFailedSqlTransaction at commit",
    ),
    Row(
        "F2: violates a deferred foreign key",
        commits.deferred_constraint,
        "ForeignKeyViolation at commit",
        "passes",
        "passes; ForeignKeyViolation at the test's end",
    ),
    Row(
        "F2: has a deferred trigger",
        commits.deferred_trigger,
        "fired at commit",
        "not fired",
        "not fired",
    ),
    Row(
        "F2: violates an immediate constraint that an earlier transaction had deferred",
        commits.immediate_again,
        "UniqueViolation at the statement",
        "no error at the statement",
        "no error at the statement",
    ),
    Row(
        "F2: violates a deferred foreign key in autocommit",
        commits.deferred_in_autocommit,
        "ForeignKeyViolation at the statement",
        SAME,
        "passes; ForeignKeyViolation at the test's end",
    ),
    Row(
        "F3: says `SET LOCAL`, commits, goes on",
        commits.set_local,
        "ended at commit",
        "still set",
        "still set",
    ),
    Row(
        "F3: `set_config(…, true)`, commits, goes on",
        commits.set_config_local,
        "ended at commit",
        "still set",
        "still set",
    ),
    Row(
        "F3: `SET LOCAL`, seen by another session",
        commits.set_local_seen_by_another,
        "not seen",
        "seen",
    ),
    Row(
        "F4: `pg_advisory_xact_lock()`, commits",
        commits.advisory_lock,
        "released at commit",
        "still held",
        "still held",
    ),
    Row(
        "F4: writes, `pg_advisory_xact_lock()`, commits",
        commits.advisory_lock_and_a_write,
        "released at commit",
        "still held",
        "still held",
        "still held",
    ),
    Row(
        "F4: an advisory lock against another session",
        commits.advisory_lock_against_another,
        "kept out",
        "not kept out",
        SAME,
        "not kept out",
    ),
    Row(
        "F5: `NOTIFY`, commits",
        commits.notify,
        "delivered at commit",
        "never delivered",
        "never delivered",
    ),
    Row(
        "F6: a table `ON COMMIT DROP`",
        commits.on_commit_drop,
        "dropped",
        "still there",
        "still there",
    ),
    Row(
        "F6: a table `ON COMMIT DELETE ROWS`",
        commits.on_commit_delete_rows,
        "emptied",
        "rows stay",
        "rows stay",
    ),
    Row("F6: a cursor, commits", commits.cursor_without_hold, "closed", "still open", "still open"),
    Row("F6: a cursor `WITH HOLD`, commits", commits.cursor_with_hold, "stays open"),
    Row(
        "F7: `now()` in the next transaction",
        commits.clock_now,
        "moves",
        "stands still",
        "stands still",
    ),
    Row(
        "F7: a column's default `now()`",
        commits.clock_default,
        "moves",
        "stands still",
        "stands still",
    ),
    Row(
        "F7: `CURRENT_TIMESTAMP` in the next transaction",
        commits.clock_current_timestamp,
        "moves",
        "stands still",
        "stands still",
        "stands still",
    ),
    Row(
        "F7: `txid_current()` in the next transaction",
        commits.transaction_id,
        "another",
        "the same",
        "the same",
        "the same",
    ),
    Row("F8: a sequence after a rollback", commits.sequence, "goes on"),
    Row("F9: writes in a `READ ONLY` transaction", commits.read_only, "ReadOnlySqlTransaction"),
    Row(
        "F9: writes in the transaction after a `READ ONLY` one",
        commits.after_read_only,
        "may write",
    ),
    Row(
        "F9: asks for `SERIALIZABLE` first of all",
        commits.serializable_first,
        "serializable",
        "ActiveSqlTransaction",
        "ActiveSqlTransaction",
    ),
    Row(
        "F9: asks for `SERIALIZABLE` later",
        commits.serializable_later,
        "serializable",
        "ActiveSqlTransaction",
        "ActiveSqlTransaction",
        "UnsupportedInSandboxError",
    ),
    Row("F10: `COMMIT` as text", commits.commit_as_text, "committed", *_ESCAPED),
    Row("F10: `COMMIT AND CHAIN`", commits.commit_and_chain, "a committed", *_ESCAPED),
    Row(
        "F10: an autocommit connection",
        commits.core_commit,
        "committed",
        "committed; LEAK",
    ),
    Row(
        "F10: calls a procedure that commits",
        commits.procedure_that_commits,
        "committed",
        "committed; LEAK",
        "InvalidTransactionTermination",
        "UnsupportedInSandboxError",
    ),
    Row(
        "F12: `VACUUM`",
        commits.vacuum,
        "done",
        SAME,
        "ActiveSqlTransaction",
        "UnsupportedInSandboxError",
    ),
    Row(
        "F12: `CREATE INDEX CONCURRENTLY`",
        commits.index_concurrently,
        "done",
        "done; LEAK",
        "ActiveSqlTransaction",
        "UnsupportedInSandboxError",
    ),
)

ROWS = COMMIT + INTERLEAVING
