"""Lets `python -m elidir.cli` do what the command `elidir` does.

Nothing else lives here:
the verbs are in the modules beside it.
"""

from elidir.cli import main

main()
