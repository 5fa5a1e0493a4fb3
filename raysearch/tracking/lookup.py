"""Read a front from MLflow, and register an exported model there."""

import os
import tempfile
from pathlib import Path
from typing import Any

from raysearch.errors import InputError, first_line
from raysearch.study.front import Front, FrontPoint
from raysearch.study.secrets import mask
from raysearch.tracking.mlflow_runs import connect, read_state
from raysearch.tracking.tracker import tracking_uri


def front_of_experiment(name: str, uri: str | None = None) -> tuple[Front, Path]:
    """The front of the newest study in an experiment, and the folder of that study.

    Args:
        name: of the experiment, which is the study's `name`.
        uri: tracking server; default MLFLOW_TRACKING_URI, else the `mlflow.db` in runs/ or the working folder.

    Raises:
        InputError: there is no such server, experiment or front.
    """
    server = uri or os.environ.get("MLFLOW_TRACKING_URI") or _default_store()
    try:
        client = connect(server)
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            known = ", ".join(sorted(found.name for found in client.search_experiments())) or "none"
            raise InputError(f"--mlflow {name}: no such experiment at {mask(server)}; there are {known}")
        # Only the parent run of a study has this tag.
        studies = client.search_runs(
            [experiment.experiment_id], "tags.`raysearch.study` != ''", order_by=["start_time DESC"]
        )
        for run in studies:
            if any(file.path == "front.json" for file in client.list_artifacts(run.info.run_id)):
                with tempfile.TemporaryDirectory() as folder:
                    client.download_artifacts(run.info.run_id, "front.json", folder)
                    return Front.load(Path(folder)), Path(run.data.tags["raysearch.folder"])
    except InputError:
        raise
    except Exception as error:  # whatever MLflow raises
        raise InputError(
            f"MLflow at {mask(server)}: {mask(first_line(error))}; start the server, or name another with --uri"
        ) from None
    raise InputError(f"--mlflow {name}: no study there has a front yet; give the folder of a study instead")


def register(study: Path, point: FrontPoint, model: Path, name: str, uri: str | None = None) -> int:
    """Copy an exported model to its run in MLflow, and register it as a new version, which is returned.

    Raises:
        InputError: the server can't be reached or refuses, or the recipe has no run there.
    """
    server = uri or tracking_uri(study)
    run_id = read_state(study, server).runs.get(point.key)
    if run_id is None:
        raise InputError(
            f"--register {name}: recipe {point.key} has no run at {mask(server)}; raysearch sync {study} makes one"
        )
    try:
        client = connect(server)
        client.log_artifacts(run_id, str(model), "model")
        _create_model(client, name)
        version = client.create_model_version(
            name,
            source=f"{client.get_run(run_id).info.artifact_uri}/model",
            run_id=run_id,
            tags={"raysearch.key": point.key, "size_ratio": f"{point.size_ratio:.4f}"},
            description=point.recipe.describe(),
        )
    except Exception as error:  # whatever MLflow raises
        raise InputError(
            f"{model} is exported, but MLflow at {mask(server)} did not register it ({mask(first_line(error))}); "
            "start the server and export again"
        ) from None
    return int(version.version)


def _create_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _default_store() -> str:
    for store in (Path("runs/mlflow.db"), Path("mlflow.db")):
        if store.exists():
            return f"sqlite:///{store.resolve()}"
    raise InputError("--mlflow: no mlflow.db in runs/ or here; name the server with --uri or MLFLOW_TRACKING_URI")
