"""Transactions in every journal mode, some rolled back, some cut short by the end of their process."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing

from guestlib import finish, same, setting, step

TRANSACTIONS = setting("SQLITE_TRANSACTIONS")
PATH = "sqlite/data.db"


def connect(journal, path=PATH):
    connection = sqlite3.connect(path, isolation_level=None)
    said = connection.execute(f"pragma journal_mode={journal}").fetchall()
    if said != [(journal,)]:
        raise AssertionError(said)
    connection.execute("pragma synchronous=full")
    return connection


def transactions(journal, count):
    connection = connect(journal)
    connection.execute("create table if not exists entries (id integer primary key, journal text, body text)")
    connection.execute("create index if not exists by_journal on entries (journal)")
    for number in range(count):
        connection.execute("begin immediate")
        connection.execute("insert into entries (journal, body) values (?, ?)", (journal, f"{number:08}" * (number % 50)))
        if number % 7 == 3:
            connection.execute("update entries set body = body || 'x' where id % 11 = ?", (number % 11,))
        if number % 10 == 9:
            connection.execute("rollback")
        else:
            connection.execute("commit")
    connection.close()


def ask(query, *arguments):
    """The first column of an answer, from a connection of its own."""
    with closing(sqlite3.connect(PATH)) as connection:
        (answer,), = connection.execute(query, arguments).fetchall()
        return answer


def rows(journal):
    return ask("select count(*) from entries where journal = ?", journal)


def integrity():
    return ask("pragma integrity_check")


def vacuum():
    with closing(sqlite3.connect(PATH)) as connection:
        connection.execute("vacuum")


def cut_short():
    """A process that ends in the middle of a transaction leaves a hot journal; the next one rolls it back."""
    child = (
        "import os, sqlite3; c = sqlite3.connect('sqlite/data.db', isolation_level=None);"
        "c.execute('pragma journal_mode=delete'); c.execute('pragma cache_size=2'); c.execute('begin immediate');"
        "c.execute('update entries set body = body || body'); os._exit(7)"
    )
    code = subprocess.run([sys.executable, "-c", child]).returncode
    return None if code == 7 else f"exit {code}"


def busy():
    """A writer keeps others out, in this process and in another one."""
    holder = connect("delete")
    holder.execute("begin exclusive")
    child = (
        "import sqlite3; c = sqlite3.connect('sqlite/data.db', timeout=0)\n"
        "try: c.execute('select count(*) from entries'); print('read')\n"
        "except sqlite3.OperationalError as e: print(e)"
    )
    said = subprocess.run([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True).stdout.strip()
    holder.execute("rollback")
    holder.close()
    return None if said == "database is locked" else said


os.mkdir("sqlite")
for journal, count in (("delete", TRANSACTIONS), ("truncate", TRANSACTIONS // 10), ("persist", TRANSACTIONS // 10),
                       ("wal", TRANSACTIONS // 10)):
    step(f"{count} transactions, journal_mode={journal}", transactions, journal, count)
    same("committed rows", count - count // 10, rows(journal))
    same("integrity_check", "ok", integrity())
step("back to a rollback journal", lambda: connect("delete").close())
step("another process is kept out", busy)
before = rows("delete")
step("a process that ends within a transaction", cut_short)
same("integrity_check after it", "ok", integrity())
same("rows after it", before, rows("delete"))
step("vacuum", vacuum)
same("integrity_check after vacuum", "ok", integrity())
with closing(sqlite3.connect(PATH)) as connection, open("sqlite/dump.sql", "w") as file:
    file.writelines(f"{line}\n" for line in connection.iterdump())
finish()
