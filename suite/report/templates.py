"""The Jinja templates in `templates/`. They escape all texts."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from buzzer.suite.report.format import clock_text, seconds_text
from buzzer.suite.words import counted

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

FOLDER = Path(__file__).parent / "templates"


@cache
def environment() -> "Environment":
    """Jinja with escaping. An undefined name is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    jinja = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters |= {
        "attributes": attributes,
        "clock": clock_text,
        "counted": counted,
        "seconds": seconds_text,
    }
    return jinja


def macro(template: str, name: str) -> "Callable[..., Markup]":
    """A macro of a template file as a function."""
    function: Callable[..., Markup] = getattr(environment().get_template(template).module, name)
    return function


def attributes(values: Mapping[str, str]) -> "Markup":
    """Names and values as data attributes, escaped."""
    from markupsafe import Markup, escape

    return Markup(" ").join(Markup('data-{}="{}"').format(name, escape(v)) for name, v in values.items())


def text(name: str) -> str:
    """The text of a file in the templates folder: the style sheet or the script."""
    return (FOLDER / name).read_text(encoding="utf-8")
