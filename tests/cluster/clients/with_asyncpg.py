"""asyncpg as an application uses it: binary values, named prepared statements. Prints what it sees.

The server is in PG* variables; the argument is the first customer id that this run may write.
"""

import asyncio
import io
import sys

import asyncpg

BASE = int(sys.argv[1])


def show(what, value):
    print(f"{what}: {value}", flush=True)


async def attempt(what, awaitable):
    try:
        await awaitable
        show(what, "done")
    except asyncpg.PostgresError as error:
        show(what, f"{error.sqlstate} {error.severity} {error.message}")


async def reads(conn):
    statement = await conn.prepare("SELECT id, name, country FROM customers WHERE id = $1")
    show("attributes", [(a.name, a.type.name) for a in statement.get_attributes()])
    for customer in list(range(1, 41)) * 2:
        show("prepared", tuple(await statement.fetchrow(customer)))
    for customer in (3, 4, 5):
        rows = await conn.fetch("SELECT id, total, placed_at FROM orders WHERE customer_id = $1 ORDER BY id", customer)
        show("orders", [tuple(row) for row in rows])
    async with conn.transaction():
        cursor = conn.cursor("SELECT id, line, product FROM (SELECT order_id AS id, line, product FROM order_items"
                             " WHERE customer_id = $1) items ORDER BY id, line", 7, prefetch=2)
        show("cursor", [tuple(row) async for row in cursor])


async def writes(conn):
    async with conn.transaction():
        await conn.execute("INSERT INTO customers VALUES ($1, $2, 'e', $3)", BASE, "Ünïcødé 漢字 🎉 'q' \\", None)
        await conn.executemany("INSERT INTO orders VALUES ($1, $2, '2026-05-01', 1.5)", [(BASE, n) for n in range(1, 6)])
        try:
            async with conn.transaction():
                await conn.execute("INSERT INTO orders VALUES ($1, 1, '2026-05-01', 1)", BASE)
        except asyncpg.UniqueViolationError as error:
            show("inner", error.sqlstate)
    show("customer", tuple(await conn.fetchrow("SELECT * FROM customers WHERE id = $1", BASE)))
    show("orders", await conn.fetchval("SELECT count(*) FROM orders WHERE customer_id = $1", BASE))
    show("deleted", await conn.execute("DELETE FROM orders WHERE customer_id = $1", BASE))
    show("deleted", await conn.execute("DELETE FROM customers WHERE id = $1", BASE))


async def errors(conn):
    await attempt("syntax", conn.fetch("SELEC 1"))
    await attempt("unknown column", conn.fetch("SELECT nothing FROM customers WHERE id = $1", 1))
    await attempt("still usable", conn.fetch("SELECT id FROM customers WHERE id = $1", 1))
    transaction = conn.transaction()
    await transaction.start()
    await attempt("division", conn.fetch("SELECT 1 / (id - 1) FROM customers WHERE id = $1", 1))
    await attempt("then", conn.fetch("SELECT id FROM customers WHERE id = $1", 1))
    await transaction.rollback()
    await attempt("after rollback", conn.fetch("SELECT id FROM customers WHERE id = $1", 1))


async def main():
    try:
        await asyncpg.connect(password="not it")
        show("wrong password", "entered")
    except asyncpg.InvalidPasswordError as error:
        show("wrong password", error.sqlstate)
    conn = await asyncpg.connect()
    await reads(conn)
    await writes(conn)
    await errors(conn)
    out = io.BytesIO()
    await conn.copy_from_query("SELECT * FROM orders WHERE customer_id = 7 ORDER BY id", output=out)
    show("copy", out.getvalue())
    # The driver cancels on the server when the time is over, and the connection stays usable.
    try:
        await conn.execute("SELECT pg_sleep(60)", timeout=0.5)
        show("timeout", "slept")
    except asyncio.TimeoutError:
        show("timeout", "cancelled")
    show("after it", await conn.fetchval("SELECT name FROM customers WHERE id = $1", 9))
    await conn.close()


asyncio.run(main())
