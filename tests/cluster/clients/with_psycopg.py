"""psycopg 3 as an application uses it. Prints what it sees; the test compares that with PostgreSQL's own answers.

The server is in PG* variables; the argument is the first customer id that this run may write.
"""

import sys
import threading

import psycopg
from psycopg.errors import Error

BASE = int(sys.argv[1])


def show(what, value):
    print(f"{what}: {value}", flush=True)


def attempt(what, act):
    try:
        act()
        show(what, "done")
    except Error as error:
        show(what, f"{error.sqlstate} {error.diag.severity} {error.diag.message_primary}")


def wrong_password():
    try:
        psycopg.connect(password="not it").close()
        show("wrong password", "entered")
    except psycopg.OperationalError as error:
        show("wrong password", "password authentication failed" in str(error))


def prepared(conn):
    conn.prepare_threshold = 0
    for customer in list(range(1, 41)) * 2:
        row = conn.execute("SELECT id, name, country FROM customers WHERE id = %s", (customer,)).fetchone()
        show("prepared", row)
    with conn.cursor(binary=True) as cur:
        for customer in (3, 4, 5, 6):
            cur.execute("SELECT id, total, placed_at, status FROM orders WHERE customer_id = %s ORDER BY id", (customer,))
            show("binary", cur.fetchall())


def transaction(conn):
    with conn.transaction():
        conn.execute("INSERT INTO customers VALUES (%s, %s, %s, %s)", (BASE, "Ünïcødé 漢字 🎉 'q' \\", "e", None))
        conn.execute("INSERT INTO orders VALUES (%s, 1, '2026-05-01', 10.50)", (BASE,))
        try:
            with conn.transaction():
                conn.execute("INSERT INTO orders VALUES (%s, 1, '2026-05-01', 1)", (BASE,))
        except Error as error:
            show("inner", error.sqlstate)
        with conn.transaction():
            conn.execute("INSERT INTO orders VALUES (%s, 2, '2026-05-01', 2)", (BASE,))
    show("customer", conn.execute("SELECT * FROM customers WHERE id = %s", (BASE,)).fetchone())
    show("orders", conn.execute("SELECT id, total, status FROM orders WHERE customer_id = %s ORDER BY id", (BASE,)).fetchall())
    cur = conn.execute("UPDATE orders SET status = 'paid' WHERE customer_id = %s AND id > %s", (BASE, 0))
    show("updated", (cur.rowcount, cur.statusmessage))


def pipeline(conn):
    with conn.pipeline():
        first = conn.execute("SELECT count(*) FROM orders WHERE customer_id = %s", (BASE,))
        conn.execute("INSERT INTO orders VALUES (%s, 3, '2026-05-02', 3)", (BASE,))
        second = conn.execute("SELECT count(*) FROM orders WHERE customer_id = %s", (BASE,))
        show("pipeline", (first.fetchone(), second.fetchone()))

    def fails():
        with conn.pipeline():
            conn.execute("SELECT 1 / (id - %s) FROM customers WHERE id = %s", (BASE, BASE))
            conn.execute("INSERT INTO orders VALUES (%s, 4, '2026-05-02', 3)", (BASE,))

    attempt("failing pipeline", fails)
    show("after it", conn.execute("SELECT count(*) FROM orders WHERE customer_id = %s", (BASE,)).fetchone())
    def fails_between_syncs():
        # Where the driver meets the error depends on when it comes in: only that it does is told.
        with conn.pipeline() as pipe:
            conn.execute("SELECT id FROM customers WHERE id = %s", (7,))
            pipe.sync()
            conn.execute("SELECT nothing FROM customers WHERE id = %s", (7,))
            pipe.sync()
            conn.execute("SELECT id FROM customers WHERE id = %s", (8,))

    attempt("bad between syncs", fails_between_syncs)
    show("after it", conn.execute("SELECT id FROM customers WHERE id = %s", (8,)).fetchone())


def copy(conn):
    with conn.cursor() as cur:
        with cur.copy("COPY (SELECT * FROM orders WHERE customer_id = 7 ORDER BY id) TO STDOUT") as out:
            show("copy", b"".join(bytes(chunk) for chunk in out))
        with cur.copy("COPY (SELECT id, name FROM customers WHERE id = 7) TO STDOUT (FORMAT csv, HEADER)") as out:
            show("copy", b"".join(bytes(chunk) for chunk in out))


def errors(conn):
    attempt("syntax", lambda: conn.execute("SELEC 1"))
    attempt("still usable", lambda: conn.execute("SELECT id FROM customers WHERE id = 1"))
    conn.autocommit = False
    conn.execute("SELECT id FROM customers WHERE id = 1")
    attempt("syntax in a transaction", lambda: conn.execute("SELECT FROM WHERE"))
    attempt("then", lambda: conn.execute("SELECT id FROM customers WHERE id = 1"))
    conn.rollback()
    attempt("after rollback", lambda: conn.execute("SELECT id FROM customers WHERE id = 1"))
    conn.rollback()
    conn.autocommit = True
    attempt("not null", lambda: conn.execute("INSERT INTO customers VALUES (%s, NULL, 'e', 'de')", (BASE + 1,)))
    attempt("bad value", lambda: conn.execute("SELECT id FROM customers WHERE id = 1 AND name = 1 / 0 || ''"))


def cancel(conn):
    ended = threading.Event()

    def keep_cancelling():
        while not ended.wait(0.05):
            conn.cancel()

    canceller = threading.Thread(target=keep_cancelling)
    canceller.start()
    attempt("cancel", lambda: conn.execute("SELECT pg_sleep(60)"))
    ended.set()
    canceller.join()


def main():
    wrong_password()
    with psycopg.connect(autocommit=True) as conn:
        prepared(conn)
        transaction(conn)
        pipeline(conn)
        copy(conn)
        errors(conn)
        conn.execute("DELETE FROM orders WHERE customer_id = %s", (BASE,))
        conn.execute("DELETE FROM customers WHERE id = %s", (BASE,))
        # Last, since a late cancel could hit what follows.
        cancel(conn)


main()
