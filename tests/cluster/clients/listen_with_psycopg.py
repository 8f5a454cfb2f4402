"""Listens and notifies with psycopg; prints what arrives, by whom it is said to be."""

import sys

import psycopg

channel = sys.argv[1]


def wait(listener, count):
    seen = []
    for note in listener.notifies(timeout=20, stop_after=count):
        who = "own" if note.pid == listener.info.backend_pid else "other"
        seen.append(f"{note.channel} {note.payload!r} {who}")
    print(sorted(seen))


with (
    psycopg.connect(autocommit=True) as listener,
    psycopg.connect(autocommit=True) as other,
):
    listener.execute(f"LISTEN {channel}")
    other.execute(f"NOTIFY {channel}, 'from another session'")
    wait(listener, 1)
    listener.execute("SELECT pg_notify(%s, %s)", (channel, "from myself"))
    wait(listener, 1)
    with other.transaction():
        other.execute(f"NOTIFY {channel}, 'one'")
        other.execute(f"NOTIFY {channel}, 'two'")
        other.execute(f"NOTIFY {channel}, 'two'")
    wait(listener, 2)
    try:
        with other.transaction():
            other.execute(f"NOTIFY {channel}, 'never'")
            raise psycopg.Rollback()
    except psycopg.Rollback:
        pass
    with listener.transaction():
        listener.execute(f"UNLISTEN {channel}")
        listener.execute('LISTEN "Other Name"')
    other.execute(f"NOTIFY {channel}, 'unheard'")
    other.execute("NOTIFY \"Other Name\", 'ünïcödé'")
    wait(listener, 1)
