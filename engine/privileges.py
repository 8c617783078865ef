"""Two users of one database: the owner of the event log, and the one who runs the program.

The owner makes the tables of the log and of the engine. The running user adds to the log, and can
neither change nor remove what is in it. Whatever is not the log is the running user's own: the
read models, their copies during a replay, the books about both, the analytics.
"""

from __future__ import annotations

from typing import Any

import structlog
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import InsufficientPrivilege
from psycopg.sql import SQL, Composed, Identifier, Literal

from engine.event_store import EVENTS
from infra.advisory_locks import Lock, lock_in_transaction
from infra.errors import OperatorError

log = structlog.get_logger(__name__)

APPEND_ONLY = (EVENTS, "public.backlot_seals")
"""What proves all the rest: rows come, and stay as they came."""
READ_ONLY = ("public.backlot_migrations",)
OF_OTHERS = "nspname !~ '^(pg_|_?timescaledb|toolkit_)' AND nspname NOT IN ('information_schema')"

WHO = b"SELECT current_user, current_database()"
EXISTS = b"SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = %s)"
# The engine's tables; others may share the database.
TABLES = b"""
SELECT relname FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
      AND relowner = current_user::regrole
      AND (starts_with(relname, 'backlot_') OR relname = 'processed_messages')
ORDER BY 1
"""
# Where something is still the owner's: all schemas but that of the log.
SCHEMAS = f"""
SELECT nspname, nspowner = current_user::regrole FROM pg_namespace n
WHERE {OF_OTHERS} AND nspname <> 'public'
      AND (nspowner = current_user::regrole
           OR EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid
                      AND c.relowner = current_user::regrole))
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_namespace'::regclass
                      AND d.objid = n.oid AND d.deptype = 'e')
ORDER BY 1
""".encode()
# Sequences and types follow their tables.
RELATIONS = b"""
SELECT relname, relkind::text FROM pg_class c
WHERE relnamespace = %s::regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'f')
      AND relowner = current_user::regrole
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
                      AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY 1
"""
ROUTINES = b"""
SELECT oid::regprocedure::text FROM pg_proc p
WHERE pronamespace = %s::regnamespace AND proowner = current_user::regrole
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass
                      AND d.objid = p.oid AND d.deptype = 'e')
"""
HAS_TIMESCALE = b"SELECT to_regclass('timescaledb_information.continuous_aggregates') IS NOT NULL"
AGGREGATES = b"""
SELECT view_name FROM timescaledb_information.continuous_aggregates WHERE view_schema = %s
"""
# Its functions change a job for its owner alone, and none of them gives it another owner.
JOBS = b"""
SELECT nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE relname = 'bgw_job' AND nspname IN ('_timescaledb_catalog', '_timescaledb_config')
      AND relkind = 'r'
"""
GIVE_JOBS = """
UPDATE {jobs} SET owner = %s::regrole
WHERE owner = current_user::regrole AND hypertable_id IS NOT NULL
"""
MAY_CHANGE = b"""
SELECT has_table_privilege(oid, 'UPDATE, DELETE, TRUNCATE') FROM pg_class
WHERE oid = to_regclass(%s)
"""
"""Whether the user of a connection may change a table; no row where there is no such table."""
# PostgreSQL only warns where somebody gives rights that are not his to give.
MAY_BUILD = b"SELECT has_database_privilege(%s, current_database(), 'CREATE')"
REWRITES = b"""
SELECT has_table_privilege(%(user)s, %(table)s, 'UPDATE, DELETE, TRUNCATE')
    OR has_any_column_privilege(%(user)s, %(table)s, 'UPDATE')
    OR pg_has_role(%(user)s, (SELECT relowner FROM pg_class WHERE oid = %(table)s::regclass),
                   'MEMBER')
"""


MAY_MAKE = b"SELECT rolsuper, rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user"


class UserUnfit(OperatorError):
    """The running user does not exist, or may do what it must not."""


def running_user(database_url: str) -> tuple[str, str | None]:
    """Return the name and the password of a URL's user. Raise UserUnfit where it names none."""
    known = conninfo_to_dict(database_url)
    if not known.get("user"):
        raise UserUnfit("DATABASE_URL: it names no user, whom DATABASE_OWNER_URL could give rights")
    password = known.get("password")
    return str(known["user"]), None if password is None else str(password)


def make_user(conn: Connection[Any], user: str, password: str | None) -> None:
    """Make the running user where it is missing and the owner may; one that is there stays.

    Raise UserUnfit where it is missing and the owner may not.
    """
    is_super, may_make = conn.execute(MAY_MAKE).fetchone() or (False, False)
    if (conn.execute(EXISTS, (user,)).fetchone() or [False])[0]:
        return
    if not may_make:
        raise UserUnfit(f"DATABASE_URL: there is no user {user}: say CREATE ROLE, as a superuser")
    name = Identifier(user)
    with conn.transaction():
        conn.execute(SQL("CREATE ROLE {} LOGIN").format(name))
        if password is not None:
            # Its hash, so that no log of statements has the password.
            said = (password.encode(), user.encode(), b"scram-sha-256")
            hashed = conn.pgconn.encrypt_password(*said).decode()
            conn.execute(SQL("ALTER ROLE {} PASSWORD {}").format(name, Literal(hashed)))
        if not is_super:
            conn.execute(SQL("GRANT {} TO CURRENT_USER WITH INHERIT TRUE, SET TRUE").format(name))
    log.info("running_user_made", user=user)


def give_rights(conn: Connection[Any], user: str) -> None:
    """Give the running user what it needs of the engine's tables, and all of what is its own.

    `conn` is the owner's, in autocommit mode; the tables and the user are there. It may be said
    again and again. Raise UserUnfit and psycopg.Error.
    """
    owner, database = conn.execute(WHO).fetchone() or ("", "")
    if user == owner:
        raise UserUnfit(
            f"DATABASE_URL and DATABASE_OWNER_URL: both name {user}; give the first another user"
        )
    try:
        with conn.transaction():
            lock_in_transaction(conn, Lock.PROJECTION_TABLES)
            _grant(conn, Identifier(user), Identifier(database))
            _hand_over(conn, user)
            (given,) = conn.execute(MAY_BUILD, (user,)).fetchone() or (False,)
            if not given:
                raise InsufficientPrivilege("it is not its database")
    except InsufficientPrivilege as error:
        reason = " ".join(str(error).split())
        raise UserUnfit(
            f"DATABASE_OWNER_URL: {owner} can't give {user} its rights ({reason}): make it the "
            f"owner of the database, and a member of {user}"
        ) from error
    _refuse_rewriters(conn, user)


def _grant(conn: Connection[Any], user: Identifier, database: Identifier) -> None:
    def say(text: str, **names: Identifier) -> None:
        conn.execute(SQL(text).format(user=user, **names))

    # A copy of a read model is a schema.
    say("GRANT CREATE, TEMPORARY ON DATABASE {database} TO {user}", database=database)
    say("GRANT USAGE ON SCHEMA public TO {user}")
    for (name,) in conn.execute(TABLES).fetchall():
        table = Identifier("public", name)
        rights = "SELECT, INSERT, UPDATE, DELETE"
        if f"public.{name}" in APPEND_ONLY:
            rights = "SELECT, INSERT"
        elif f"public.{name}" in READ_ONLY:
            rights = "SELECT"
        say("REVOKE ALL ON {table} FROM {user}", table=table)
        say(f"GRANT {rights} ON {{table}} TO {{user}}", table=table)


def _hand_over(conn: Connection[Any], user: str) -> None:
    """Make the running user the owner of all that is no table of the engine."""
    (timescale,) = conn.execute(HAS_TIMESCALE).fetchone() or (False,)
    schemas = dict(conn.execute(SCHEMAS).fetchall())
    for schema, is_ours in schemas.items():
        if is_ours:
            # First: an owner of tables has to be allowed to make some there.
            conn.execute(_owner("SCHEMA", Identifier(schema), user))
        found = conn.execute(AGGREGATES, (schema,)).fetchall() if timescale else []
        aggregates = {name for (name,) in found}
        for name, kind in conn.execute(RELATIONS, (_quoted(schema),)).fetchall():
            what = "MATERIALIZED VIEW" if kind == "m" or name in aggregates else KINDS[kind]
            conn.execute(_owner(what, Identifier(schema, name), user))
        for (signature,) in conn.execute(ROUTINES, (_quoted(schema),)).fetchall():
            conn.execute(_owner("ROUTINE", SQL(signature), user))
    if schemas and timescale:
        for (catalog,) in conn.execute(JOBS).fetchall():
            jobs = SQL(GIVE_JOBS).format(jobs=Identifier(catalog, "bgw_job"))
            conn.execute(jobs, (_quoted(user),))
    if schemas:
        log.info("schemas_handed_over", user=user, schemas=list(schemas))


KINDS = {"r": "TABLE", "p": "TABLE", "f": "FOREIGN TABLE", "v": "VIEW"}


def _owner(what: str, name: Identifier | SQL, user: str) -> Composed:
    text = f"ALTER {what} {{name}} OWNER TO {{user}}"
    return SQL(text).format(name=name, user=Identifier(user))


def _quoted(name: str) -> str:
    """Return a name as `regrole` and `regnamespace` read it."""
    return Identifier(name).as_string(None)


def _refuse_rewriters(conn: Connection[Any], user: str) -> None:
    for table in APPEND_ONLY:
        given = {"user": user, "table": table}
        if (conn.execute(REWRITES, given).fetchone() or [True])[0]:
            raise UserUnfit(
                f"DATABASE_URL: {user} may change {table} all the same, as a superuser, a member "
                "of its owner or by a right of everybody: use a plain user, and take that right"
            )
