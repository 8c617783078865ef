"""The SQL that compares one table of two copies.

Names of every kind occur in it only as quoted identifiers; keys have aliases of our own, so that no
column's name can get in the way.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg.sql import SQL, Composable, Composed, Identifier, Literal

from projections.proving.tables import Table, common_columns

# The same texts wherever the comparison runs, and a planner that may read whole tables.
SESSION = b"""
SET LOCAL timezone = 'UTC';
SET LOCAL datestyle = 'ISO, YMD';
SET LOCAL intervalstyle = 'iso_8601';
SET LOCAL bytea_output = 'hex';
SET LOCAL extra_float_digits = 1;
SET LOCAL enable_seqscan = on;
SET LOCAL enable_bitmapscan = on;
SET LOCAL work_mem = '64MB';
SET LOCAL statement_timeout = 0
"""

# The sum does not depend on the order in which the rows lie.
DIGEST = SQL("SELECT count(*), coalesce(sum({hash}), 0) FROM {table} t")

# Both give a row per key that differs: its texts, its digests, and how many of its rows the live
# copy lacks and how many only it has.
BY_KEY = SQL("""
SELECT ARRAY[{texts}]::text[] AS key, l.hash AS live, o.hash AS other,
       (l.hash IS NULL)::int AS missing, (o.hash IS NULL)::int AS extra, {aliases}
FROM (SELECT {columns}, {hash} AS hash FROM {live} t) l
FULL JOIN (SELECT {columns}, {hash} AS hash FROM {other} t) o USING ({aliases})
WHERE l.hash IS DISTINCT FROM o.hash""")
BY_ROW = SQL("""
SELECT key, l.hash AS live, o.hash AS other,
       greatest(coalesce(o.rows, 0) - coalesce(l.rows, 0), 0) AS missing,
       greatest(coalesce(l.rows, 0) - coalesce(o.rows, 0), 0) AS extra
FROM (SELECT ARRAY[{texts}]::text[] AS key, min({hash}) AS hash, count(*) AS rows
      FROM {live} t GROUP BY 1) l
FULL JOIN (SELECT ARRAY[{texts}]::text[] AS key, min({hash}) AS hash, count(*) AS rows
           FROM {other} t GROUP BY 1) o USING (key)
WHERE l.rows IS DISTINCT FROM o.rows""")

COUNT = SQL("""
SELECT coalesce(sum(missing), 0)::bigint, coalesce(sum(extra), 0)::bigint,
       count(*) FILTER (WHERE missing = 0 AND extra = 0)
FROM ({differing}) AS d""")
FIRST = SQL("""
SELECT key, live, other, missing, extra, NULL FROM ({differing}) AS d
ORDER BY {order} LIMIT {limit}""")
# Columns by name with the two values, where two rows have them otherwise; NULL without two rows.
CHANGES = """
(SELECT jsonb_object_agg(one.key, jsonb_build_array(one.value, two.value))
 FROM jsonb_each(to_jsonb({one})) AS one JOIN jsonb_each(to_jsonb({two})) AS two USING (key)
 WHERE one.value::text IS DISTINCT FROM two.value::text)"""
FIRST_BY_KEY = SQL(
    """
SELECT d.key, d.live, d.other, d.missing, d.extra, """
    + CHANGES.format(one="l", two="o")
    + """
FROM (SELECT * FROM ({differing}) AS d ORDER BY {order} LIMIT {limit}) AS d
LEFT JOIN {live} l ON ({live_key}) = ({aliases})
LEFT JOIN {other} o ON ({other_key}) = ({aliases})
ORDER BY {aliases}"""
)


class Comparison:
    """The statements for one table that both copies have; rows are compared by common columns."""

    def __init__(self, schemas: tuple[str, str], live: Table, other: Table) -> None:
        columns = common_columns(live, other)
        self.key = live.key if live.keyed_as(other) else []
        self.named = self.key or columns
        self._tables = [Identifier(schema, live.name) for schema in schemas]
        self._aliases = [Identifier(f"k{place}") for place in range(len(self.key))]
        self._hash = SQL("hashtextextended(ROW({})::text, 0)").format(_listed(_of_t(columns)))

    def digest(self, side: int) -> Composed:
        """Rows and the sum of their hashes: of the live copy (0) or the other one (1)."""
        return DIGEST.format(hash=self._hash, table=self._tables[side])

    def count(self) -> Composed:
        """How many rows are missing, extra and different."""
        return COUNT.format(differing=self._differing())

    def first(self, limit: int) -> Composed:
        """The first differing keys: key, live and other hash, rows missing and extra, changes."""
        order = _listed(self._aliases or [Identifier("key")])
        what = {"differing": self._differing(), "order": order, "limit": Literal(limit)}
        if not self.key:
            return FIRST.format(**what)
        live, other = self._tables
        return FIRST_BY_KEY.format(
            **what,
            live=live,
            other=other,
            live_key=_listed([Identifier("l", column) for column in self.key]),
            other_key=_listed([Identifier("o", column) for column in self.key]),
            aliases=_listed([SQL("d.{}").format(alias) for alias in self._aliases]),
        )

    def _differing(self) -> Composed:
        live, other = self._tables
        if not self.key:
            texts = _listed(_texts(_of_t(self.named)))
            return BY_ROW.format(texts=texts, hash=self._hash, live=live, other=other)
        pairs = zip(_of_t(self.key), self._aliases, strict=True)
        return BY_KEY.format(
            texts=_listed(_texts(self._aliases)),
            aliases=_listed(self._aliases),
            columns=_listed([SQL("{} AS {}").format(column, alias) for column, alias in pairs]),
            hash=self._hash,
            live=live,
            other=other,
        )


def _listed(parts: Sequence[Composable]) -> Composed:
    return SQL(", ").join(parts)


def _of_t(columns: list[str]) -> list[Composable]:
    return [Identifier("t", column) for column in columns]


def _texts(parts: Sequence[Composable]) -> list[Composable]:
    return [SQL("{}::text").format(part) for part in parts]
