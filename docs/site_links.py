"""A hook of MkDocs: links to files outside docs/, which the site does not have, become plain text."""

import re

OUTSIDE = re.compile(r"!?\[([^\]]*)\]\(\.\./[^)]*\)")


def on_page_markdown(markdown: str, **_: object) -> str:
    """The Markdown of a page for the site."""
    return OUTSIDE.sub(r"\1", markdown)
