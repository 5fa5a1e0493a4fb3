"""Search for the Pareto front of size against retention: the main job.

python -m raysearch.pareto                                    # the embedded LVLM, minutes on two CPU cores
python -m raysearch.pareto my-space.yaml --budget 3.2GB --out runs/mine
ray job submit --working-dir . -- python -m raysearch.pareto search_spaces/pocket.yaml

The same as `raysearch search`. `backend.search_job.check` checks the space and the folder, and counts what the search
would take; `backend.search_job.run` locks the folder, runs the trials on Ray and writes the front.
"""

from raysearch.cli.exit_codes import App
from raysearch.cli.search import search

app = App()
app.command()(search)

if __name__ == "__main__":
    app()
