"""Rows that never change, whoever asks: refused by the model, and by triggers in the database itself.

`manage.py migrate` takes the triggers away and puts them back, since SQLite loses those of a table that it makes anew,
and with them which numbers were given in it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from django.apps import apps
from django.core.checks import CheckMessage, Warning
from django.db import DatabaseError, connections, models, transaction

_POSTGRES_REFUSAL = """
CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  {unless}
  RAISE EXCEPTION '{message}' USING ERRCODE = 'integrity_constraint_violation';
END $$
"""


_suspended: set[str] = set()


class Immutable(models.Model):
    """Rows are added; then only `mutable_fields` change, and none is deleted unless `deletable_when` holds.

    deletable_when: SQL over OLD, the row, such as "EXISTS (SELECT 1 FROM ... WHERE ... = OLD.id)". Even then rows go
    by a QuerySet only, never by `delete` of one.
    """

    mutable_fields: ClassVar[frozenset[str]] = frozenset()
    deletable_when: ClassVar[str] = ""

    class Meta:
        abstract = True

    def save(self, *args: Any, **kwargs: Any) -> None:
        changing = set(kwargs.get("update_fields") or ["everything"])
        if not self._state.adding and not changing <= self.mutable_fields:
            raise TypeError(f"A {self._meta.verbose_name} is never changed; make a new one.")
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"A {self._meta.verbose_name} is never deleted.")


def install(using: str = "default") -> None:
    """Put every trigger in place whose table is there; those there already are made anew."""
    with transaction.atomic(using), connections[using].cursor() as cursor:
        for model in _there(using):
            # After a migration back to an earlier release not every column of the model may be there.
            columns = {
                found.name
                for found in connections[using].introspection.get_table_description(cursor, model._meta.db_table)
            }
            for statement in [*_removals(using, model), *_creations(using, model, _fixed_columns(model, columns))]:
                cursor.execute(statement)


def uninstall(using: str = "default") -> None:
    """Take every trigger away, for a migration."""
    with transaction.atomic(using), connections[using].cursor() as cursor:
        for model in _there(using):
            for statement in _removals(using, model):
                cursor.execute(statement)


@contextmanager
def suspended(using: str = "default") -> Iterator[None]:
    """No triggers within; they are put back also after an error."""
    uninstall(using)
    _suspended.add(using)
    try:
        yield
    finally:
        _suspended.discard(using)
        install(using)


@contextmanager
def numbers_kept(using: str = "default") -> Iterator[None]:
    """No number of a row that was deleted is given again, although SQLite forgets them with a table it makes anew.

    A new version under the key of a deleted one would be taken for that one, by the trigger as well.
    """
    given = _numbers_given(using)
    try:
        yield
    finally:
        with transaction.atomic(using), connections[using].cursor() as cursor:
            now, tables = _numbers_given(using), set(connections[using].introspection.table_names(cursor))
            for table, number in given.items():
                if table in tables and now.get(table, 0) < number:
                    cursor.execute("DELETE FROM sqlite_sequence WHERE name = %s", [table])
                    cursor.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (%s, %s)", [table, number])


def _numbers_given(using: str) -> dict[str, int]:
    """The highest number that SQLite ever gave in each table; other databases keep theirs themselves."""
    if connections[using].vendor != "sqlite":
        return {}
    with connections[using].cursor() as cursor:
        cursor.execute("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence'")
        if cursor.fetchone() is None:
            return {}
        cursor.execute("SELECT name, seq FROM sqlite_sequence")
        return {name: number or 0 for name, number in cursor.fetchall()}


def missing(using: str = "default") -> list[str]:
    """The tables that ought to be guarded by the database and are not."""
    connection = connections[using]
    query = (
        "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgenabled <> 'D'"
        if connection.vendor == "postgresql"
        else "SELECT name FROM sqlite_master WHERE type = 'trigger'"
    )
    with connection.cursor() as cursor:
        cursor.execute(query)
        there = {row[0] for row in cursor.fetchall()}
    return [model._meta.db_table for model in _there(using) if not set(_names(using, model)) <= there]


def check_triggers(databases: Any = None, **kwargs: Any) -> list[CheckMessage]:
    """For `manage.py check --database default`."""
    found: list[CheckMessage] = []
    # `migrate` checks while it has the triggers out of its way.
    for using in set(databases or []) - _suspended:
        try:
            tables = missing(using)
        except DatabaseError:
            # That the database cannot be asked is said by whatever needs it.
            continue
        if tables:
            found.append(
                Warning(
                    f"The database does not guard the rows of {', '.join(tables)}.",
                    hint="Run `manage.py migrate`, which puts the triggers in place.",
                    id="xrayplatform.W001",
                )
            )
    return found


def _there(using: str) -> list[type[Immutable]]:
    tables = set(connections[using].introspection.table_names())
    guarded = [model for model in apps.get_models() if issubclass(model, Immutable)]
    return [model for model in guarded if model._meta.db_table in tables]


def _names(using: str, model: type[Immutable]) -> list[str]:
    events = ["update", "delete"] if connections[using].vendor == "sqlite" else ["update", "delete", "truncate"]
    return [f"{model._meta.db_table}_no_{event}" for event in events]


def _removals(using: str, model: type[Immutable]) -> list[str]:
    where = "" if connections[using].vendor == "sqlite" else f' ON "{model._meta.db_table}"'
    return [f"DROP TRIGGER IF EXISTS {name}{where}" for name in _names(using, model)]


def _creations(using: str, model: type[Immutable], fixed: str) -> list[str]:
    return _for_sqlite(model, fixed) if connections[using].vendor == "sqlite" else _for_postgres(model, fixed)


def _for_sqlite(model: type[Immutable], fixed: str) -> list[str]:
    table, unless = model._meta.db_table, f" WHEN NOT ({model.deletable_when})" if model.deletable_when else ""
    refuse = "BEGIN SELECT RAISE(ABORT, '{}'); END"
    changed, deleted = refuse.format(f"{table}: rows never change"), refuse.format(f"{table}: rows are never deleted")
    return [
        f'CREATE TRIGGER {table}_no_update BEFORE UPDATE OF {fixed} ON "{table}" {changed}',
        f'CREATE TRIGGER {table}_no_delete BEFORE DELETE ON "{table}"{unless} {deleted}',
    ]


def _for_postgres(model: type[Immutable], fixed: str) -> list[str]:
    table = model._meta.db_table
    unless = f"IF {model.deletable_when} THEN RETURN OLD; END IF;" if model.deletable_when else ""
    events = {
        "update": (f"UPDATE OF {fixed}", "EACH ROW", "", "rows never change"),
        "delete": ("DELETE", "EACH ROW", unless, "rows are never deleted"),
        "truncate": ("TRUNCATE", "EACH STATEMENT", "", "rows are never deleted"),
    }
    statements = []
    for event, (when, each, exception, message) in events.items():
        name = f"{table}_no_{event}"
        statements.append(_POSTGRES_REFUSAL.format(name=name, unless=exception, message=f"{table}: {message}"))
        statements.append(f'CREATE TRIGGER {name} BEFORE {when} ON "{table}" FOR {each} EXECUTE FUNCTION {name}()')
    return statements


def _fixed_columns(model: type[Immutable], there: set[str]) -> str:
    fields = [field for field in model._meta.concrete_fields if field.name not in model.mutable_fields]
    return ", ".join(f'"{field.column}"' for field in fields if field.column in there)
