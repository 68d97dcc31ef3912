"""Escapes text from records, which are untrusted, so that it has no effect in a terminal or in Markdown.

In HTML, Jinja escapes it.
"""

import re
import unicodedata

HIDDEN = {
    "Cc",
    "Cf",
    "Cs",
    "Zl",
    "Zp",
}  # control, format (bidi), lone surrogates, line and paragraph separators
_INLINE = re.compile(
    r"[\\`*\[~|$]"  # emphasis, code, links, strike-through, cells, formulas
    r"|(?<![^\W_])_|_(?![^\W_])"  # not within a word, where Markdown takes an underscore literally
)
_BLOCK = re.compile(r"^(?:#{1,6}|[+=-]|\d+[.)])(?=[\s=-]|$)|^>")  # headings, lists, rules, quotes


def printable(text: str, keep: str = "") -> str:
    r"""`text` with control characters and invisible characters as escape sequences, except for those in `keep`.

    >>> printable("a\x1b[31mb\n")
    'a\\x1b[31mb\\n'
    """
    if text.isprintable():
        return text
    return "".join(c if c in keep or unicodedata.category(c) not in HIDDEN else _written(c) for c in text)


def _written(c: str) -> str:
    return c.encode("unicode_escape").decode()


class Markdown(str):
    """Text that is already Markdown."""

    __slots__ = ()


def markdown(text: str, block: bool = False) -> Markdown:
    r"""One line of Markdown that displays `text` literally. `block`: the line begins a paragraph or a list item.

    >>> markdown("<b>*x*"), markdown("# x", block=True)
    ('&lt;b>\\*x\\*', '\\# x')
    """
    if isinstance(text, Markdown):
        return text
    line = printable(" ".join(text.split()))
    line = re.sub(r"&(?=#?\w+;)", "&amp;", line)
    line = _INLINE.sub(_escaped, line).replace("<", "&lt;")
    return Markdown(_BLOCK.sub(_escaped, line) if block else line)


def _escaped(match: re.Match[str]) -> str:
    special = match.group()
    return f"{special[:-1]}\\{special[-1]}"


def code(text: str) -> Markdown:
    """`text` as a code span of Markdown, which can be used in a table."""
    line = printable(" ".join(text.split())).replace("`", "'")
    return Markdown("`" + line.replace("|", "\\|") + "`")
