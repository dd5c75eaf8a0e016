"""A report written down: as text, Markdown, CSV, a page of HTML, or an excerpt for a notebook.

`sections` arranges a report once, as tables, tiles and plots; each form writes what is arranged.
Nothing here computes a cost, and no form has a number that another has not.
"""

from elidir.cost_models.writers.markdown import format_markdown
from elidir.cost_models.writers.page import format_excerpt, format_html
from elidir.cost_models.writers.spreadsheet import format_csv
from elidir.cost_models.writers.text import format_report

__all__ = ["format_csv", "format_excerpt", "format_html", "format_markdown", "format_report"]
