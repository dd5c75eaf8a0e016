"""The report as HTML: one page that needs no network, and the excerpt that a notebook shows.

The page is the template `templates/report.html.j2` with its style sheet and its few lines of script
put in; without the script only sorting by a click is lost. What is shown is said in `sections.py`.
"""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from elidir.cost_models.report import Report
from elidir.cost_models.writers.sections import figures, request, sections, title
from elidir.cost_models.writers.tables import Width

TEMPLATES = Path(__file__).parent / "templates"


def format_html(report: Report) -> str:
    """Return the page of a report."""
    return _render("report.html.j2", report, sections=sections(report))


def format_excerpt(report: Report) -> str:
    """Return the main figures as a fragment of HTML."""
    return _render("excerpt.html.j2", report, figures=figures(report), width=Width.TEXT)


def _render(name: str, report: Report, **values: Any) -> str:
    loader = FileSystemLoader(TEMPLATES)
    made = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    head = {"title": title(report), "request": request(report), "page": Width.PAGE}
    return made.get_template(name).render(**head, **values, include=_include, svg=Markup)


def _include(name: str) -> Markup:
    """Return a file of elidir's own as it is: a style sheet, a script."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))
