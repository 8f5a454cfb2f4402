"""psycopg2 as an application uses it: simple protocol only. Prints what it sees.

The server is in PG* variables; the argument is the first customer id that this run may write.
"""

import io
import sys
import threading

import psycopg2

BASE = int(sys.argv[1])


def show(what, value):
    print(f"{what}: {value}", flush=True)


def attempt(what, act):
    try:
        act()
        show(what, "done")
    except psycopg2.Error as error:
        show(what, f"{error.pgcode} {error.diag.severity} {error.diag.message_primary}")


def main():
    try:
        psycopg2.connect("", password="not it").close()
        show("wrong password", "entered")
    except psycopg2.OperationalError as error:
        show("wrong password", "password authentication failed" in str(error))
    conn = psycopg2.connect("")
    cur = conn.cursor()
    for customer in range(1, 41):
        # One transaction per customer: begun by the driver, on whichever shard the first statement names.
        cur.execute("SELECT id, name, country FROM customers WHERE id = %s", (customer,))
        show("row", cur.fetchone())
        conn.commit()
    cur.execute("INSERT INTO customers VALUES (%s, %s, %s, %s)", (BASE, "Ünïcødé 漢字 🎉 'q' \\", "e", None))
    cur.execute("SAVEPOINT a")
    attempt("duplicate", lambda: cur.execute("INSERT INTO customers VALUES (%s, 'x', 'e', 'de')", (BASE,)))
    cur.execute("ROLLBACK TO a")
    cur.execute("INSERT INTO orders VALUES (%s, 1, '2026-05-01', 10.50) RETURNING status, total", (BASE,))
    show("returning", cur.fetchall())
    conn.commit()
    cur.execute("SELECT * FROM customers WHERE id = %s", (BASE,))
    show("customer", cur.fetchone())
    show("description", [(column.name, column.type_code) for column in cur.description])
    conn.rollback()
    cur.execute("SELECT id FROM customers WHERE id = 5; SELECT name FROM customers WHERE id = 5")
    show("two statements", cur.fetchall())
    conn.rollback()
    out = io.StringIO()
    cur.copy_expert("COPY (SELECT * FROM orders WHERE customer_id = 7 ORDER BY id) TO STDOUT", out)
    show("copy", out.getvalue())
    conn.rollback()
    rows = "".join(f"{BASE + 100 + at}\tname {at}\te\t\\N\n" for at in range(90))
    for end in (conn.rollback, conn.commit):
        cur.copy_expert("COPY customers FROM STDIN", io.StringIO(rows))
        show("copied", cur.rowcount)
        end()
    last = f"WHERE id BETWEEN {BASE + 100} AND {BASE + 189}"
    attempt("again", lambda: cur.copy_expert("COPY customers FROM STDIN", io.StringIO(rows)))
    conn.rollback()
    cur.execute(f"SELECT count(*), min(id), max(name) FROM customers {last}")
    show("copied", cur.fetchone())
    conn.rollback()
    out = io.StringIO()
    cur.copy_expert("COPY customers (id) TO STDOUT (FORMAT csv, HEADER)", out)
    lines = out.getvalue().splitlines()
    show("copied out", (lines[0], all(str(BASE + 100 + at) in lines for at in range(90))))
    conn.rollback()
    cur.execute(f"DELETE FROM customers {last}")
    show("deleted", cur.rowcount)
    conn.commit()
    attempt("syntax", lambda: cur.execute("SELECT FROM WHERE"))
    attempt("then", lambda: cur.execute("SELECT id FROM customers WHERE id = 1"))
    conn.rollback()
    attempt("after rollback", lambda: cur.execute("SELECT id FROM customers WHERE id = 1"))
    conn.rollback()
    cur.execute("DELETE FROM orders WHERE customer_id = %s", (BASE,))
    cur.execute("DELETE FROM customers WHERE id = %s", (BASE,))
    show("deleted", cur.rowcount)
    conn.commit()
    ended = threading.Event()

    def keep_cancelling():
        while not ended.wait(0.05):
            conn.cancel()

    canceller = threading.Thread(target=keep_cancelling)
    canceller.start()
    attempt("cancel", lambda: cur.execute("SELECT pg_sleep(60)"))
    ended.set()
    canceller.join()
    conn.close()


main()
