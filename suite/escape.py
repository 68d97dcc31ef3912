"""Text of records as it is shown: nothing in it takes effect in a terminal, in Markdown or in HTML.

Records are written by whoever made them. HTML is escaped by Jinja; this module has what the other outputs need.
"""

import re
import unicodedata

HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (bidi), lone surrogates, line and paragraph ends
_INLINE = re.compile(
    r"[\\`*\[~|$]"  # emphasis, code, links, strike-through, cells, formulas
    r"|(?<![^\W_])_|_(?![^\W_])"  # an underscore within a word is one to Markdown as well
)
_BLOCK = re.compile(r"^(?:#{1,6}|[+=-]|\d+[.)])(?=[\s=-]|$)|^>")  # headings, lists, rules, quotes


def printable(text: str, keep: str = "") -> str:
    r"""`text` with what steers a terminal or hides written out.

    >>> printable("a\x1b[31mb\n")
    'a\\x1b[31mb\\n'
    """
    if text.isprintable():
        return text
    return "".join(c if c in keep or unicodedata.category(c) not in HIDDEN else _written(c) for c in text)


def _written(c: str) -> str:
    return c.encode("unicode_escape").decode()


class Markdown(str):
    """Text that is Markdown already."""

    __slots__ = ()


def markdown(text: str, block: bool = False) -> Markdown:
    r"""One line of Markdown that shows `text` as it is; `block` where it begins a paragraph or an item.

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
    found = match.group()
    return f"{found[:-1]}\\{found[-1]}"


def code(text: str) -> Markdown:
    """`text` as a code span, safe in a table's cell."""
    line = printable(" ".join(text.split())).replace("`", "'")
    return Markdown("`" + line.replace("|", "\\|") + "`")
