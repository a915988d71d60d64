"""Exactly once across crashes: the event and the place go into one transaction."""

import sqlite3

import resumable_stream as rs
from resumable_stream.testing import FlakyServer, numbered

database = sqlite3.connect(":memory:")
database.execute("CREATE TABLE answer (text TEXT)")
database.execute("CREATE TABLE place (token TEXT)")


def read(url: str, *, crash_at: str = "") -> None:
    row = database.execute("SELECT token FROM place").fetchone()
    with rs.connect("GET", url, checkpoint=row and row[0], commit="manual") as stream:
        for event in stream:
            with database:  # one transaction: both statements, or neither
                database.execute("INSERT INTO answer VALUES (?)", [event.data])
                stream.commit(event)
                database.execute("DELETE FROM place")
                database.execute("INSERT INTO place VALUES (?)", [stream.token])
                if event.id == crash_at:
                    raise KeyboardInterrupt


with FlakyServer(numbered(6)) as server:
    try:
        read(server.url, crash_at="4")
    except KeyboardInterrupt:
        print("crashed at event 4, inside the transaction")
    read(server.url)

answer = [text for (text,) in database.execute("SELECT text FROM answer")]
print(answer)
assert answer == [f"event {n}" for n in range(1, 7)]
