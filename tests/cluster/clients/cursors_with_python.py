"""Cursors of the server as psycopg2, psycopg and asyncpg use them, over rows of all shards. Prints what it sees.

The server is in PG* variables; the argument is not used.
"""

import asyncio

import asyncpg
import psycopg
import psycopg2

# No other test writes these.
SORTED = "SELECT id, name, country FROM customers WHERE id <= 400 ORDER BY id DESC"


def show(what, value):
    print(f"{what}: {value}", flush=True)


def with_psycopg2():
    conn = psycopg2.connect("")
    named = conn.cursor("by id")
    named.itersize = 37
    named.execute("SELECT id, name FROM customers WHERE id <= %s ORDER BY id", (400,))
    plain = conn.cursor()
    for at, row in enumerate(named):
        show("row", row)
        if at % 90 == 0:
            plain.execute("SELECT count(*) FROM orders WHERE customer_id = %s", (row[0],))
            show("beside", plain.fetchone())
    named.close()
    with conn.cursor("part") as part:
        part.execute(SORTED)
        show("one", part.fetchone())
        show("many", part.fetchmany(5))
        show("description", [(column.name, column.type_code) for column in part.description])
        part.scroll(50)
        show("behind", part.fetchmany(3))
        show("rest", len(part.fetchall()))
    conn.commit()


def with_psycopg():
    for binary in (False, True):
        with psycopg.connect("") as conn:
            with conn.cursor("part", binary=binary) as part:
                part.itersize = 60
                part.execute("SELECT id, name FROM customers WHERE id <= %s ORDER BY id", (400,))
                show("description", [(column.name, column.type_code) for column in part.description])
                show("first", part.fetchone())
                for row in part:
                    show("row", row)
            with conn.cursor("counts") as counts, conn.cursor("sorted") as rows:
                # The first is computed by one shard over gathered rows.
                counts.execute("SELECT country, count(*) FROM customers WHERE id <= 400 GROUP BY 1 ORDER BY 1")
                rows.execute(SORTED)
                for _ in range(3):
                    show("count", counts.fetchone())
                    show("next", rows.fetchmany(4))


async def with_asyncpg():
    conn = await asyncpg.connect(statement_cache_size=0)
    async with conn.transaction():
        async for row in conn.cursor(SORTED, prefetch=23):
            show("row", tuple(row))
        cursor = await conn.cursor("SELECT id FROM customers WHERE id <= $1 ORDER BY id", 400)
        show("fetch", [row["id"] for row in await cursor.fetch(10)])
        show("moved", await cursor.forward(30))
        show("beside", await conn.fetchval("SELECT name FROM customers WHERE id = 17"))
        try:
            async with conn.transaction():
                await conn.execute("SELECT 1 / 0")
        except asyncpg.DivisionByZeroError as error:
            show("error", error)
        show("row", await cursor.fetchrow())
        show("rest", len(await cursor.fetch(1000)))
    await conn.close()


with_psycopg2()
with_psycopg()
asyncio.run(with_asyncpg())
