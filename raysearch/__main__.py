"""python -m raysearch: the command line."""

from raysearch.cli.app import app

app()
