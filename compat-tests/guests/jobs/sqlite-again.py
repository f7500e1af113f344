"""What `sqlite` left, found by a daemon that has seen none of it."""

import sqlite3

from guestlib import finish, same

connection = sqlite3.connect("sqlite/data.db")
same("integrity_check", "ok", connection.execute("pragma integrity_check").fetchone()[0])
with open("sqlite/dump.sql") as file:
    same("the rows", file.read(), "".join(f"{line}\n" for line in connection.iterdump()))
connection.close()
finish()
