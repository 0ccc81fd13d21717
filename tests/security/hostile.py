"""Texts that must never become a path, and what a folder holds, to see that nothing was written."""

from __future__ import annotations

from pathlib import Path

NAMES = [
    "",
    " ",
    ".",
    "..",
    "../up",
    "../../../../../../tmp/up",
    "a/../../up",
    "a/b",
    "/etc/up",
    "//up",
    "~",
    "~/up",
    "~root/up",
    "a\0b",
    "../up\0.json",
    "a\nb",
    "a\tb",
    "\x1b[31mred",
    "\x7f",
    "..\\up",
    "a\\b",
    "C:\\up",
    "C:up",
    "\\\\host\\up",
    "․․/up",  # one dot leaders
    "．．／up",  # fullwidth dots and slash
    "‥/up",  # two dot leader
    "a／b",
    "a∕b",  # division slash
    "a⁄b",  # fraction slash
    "\u202ea",  # right-to-left override
    "é" * 60,
    "a" * 5000,
    "-rf",
    ".hidden",
    "up.",
    "up ",
    "CON",
    "nul",
    "aux.txt",
    "COM1",
    "lpt1.csv",
    "%2e%2e%2fup",
    "$(touch up)",
    "`touch up`",
    "a;touch up",
    "*",
    "\ud800",
]


def tree(folder: Path) -> dict[str, bytes | str | None]:
    """Everything below a folder: the content of files, where links lead, None for folders."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found[name] = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


def outside(found: dict[str, bytes | str | None], inside: str) -> dict[str, bytes | str | None]:
    """What is not in the folder ``inside``."""
    return {name: content for name, content in found.items() if name != inside and not name.startswith(f"{inside}/")}
