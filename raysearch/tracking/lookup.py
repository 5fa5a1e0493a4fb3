"""Read a front from MLflow, and register an exported model there."""

import os
import shutil
import tempfile
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from raysearch.errors import InputError, first_line
from raysearch.files import write_text
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
    """Log an exported model to its run in MLflow, as `mlflow.transformers` loads it, and register it as a new version,
    which is returned.

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
        import mlflow

        mlflow.set_tracking_uri(server)
        mlflow.set_registry_uri(server)
        logged = mlflow.models.Model.log(
            artifact_path=None,
            name="model",
            flavor=SimpleNamespace(save_model=partial(save_model, checkpoint=model)),
            flavor_name="transformers",
            run_id=run_id,
            registered_model_name=name,
            await_registration_for=None,
        )
        number = str(logged.registered_model_version)
        client.update_model_version(name, number, description=point.recipe.describe())
        for key, value in {"raysearch.key": point.key, "size_ratio": f"{point.size_ratio:.4f}"}.items():
            client.set_model_version_tag(name, number, key, value)
    except Exception as error:  # whatever MLflow raises
        raise InputError(
            f"{model} is exported, but MLflow at {mask(server)} did not register it ({mask(first_line(error))}); "
            "start the server and export again"
        ) from None
    return int(number)


def save_model(path: str, mlflow_model: Any, checkpoint: Path) -> None:
    """Lay a stock checkpoint out as `mlflow.transformers.load_model` reads it, its files as they are.

    MLflow loads a model with a processor by `return_type="components"` alone.

    MLflow's own function for checkpoints needs an older transformers: it takes the name of a task's class, as
    transformers 5.24 gives it, for the class.

    Args:
        path: folder to make.
        mlflow_model: takes the description of the model, a `mlflow.models.Model`.
    """
    from transformers import AutoConfig, AutoProcessor

    folder = Path(path)
    shutil.copytree(checkpoint, folder / "model")
    processor = AutoProcessor.from_pretrained(checkpoint)
    is_multimodal = hasattr(processor, "tokenizer")
    config = AutoConfig.from_pretrained(checkpoint)
    (processor.tokenizer if is_multimodal else processor).save_pretrained(folder / "components" / "tokenizer")
    if is_multimodal:
        processor.save_pretrained(folder / "components" / "processor")
    mlflow_model.add_flavor(
        "transformers",
        transformers_version=version("transformers"),
        task="image-text-to-text" if is_multimodal else "text-generation",
        instance_type="ImageTextToTextPipeline" if is_multimodal else "TextGenerationPipeline",
        pipeline_model_type=config.architectures[0],
        source_model_name=checkpoint.name,
        model_binary="model",
        components=["tokenizer"],
        tokenizer_type="AutoTokenizer",
        **({"processor_type": "AutoProcessor"} if is_multimodal else {}),
    )
    mlflow_model.save(str(folder / "MLmodel"))
    packages = ("mlflow", "transformers", "torch", "pillow")
    write_text(folder / "requirements.txt", "".join(f"{package}=={version(package)}\n" for package in packages))


def _default_store() -> str:
    for store in (Path("runs/mlflow.db"), Path("mlflow.db")):
        if store.exists():
            return f"sqlite:///{store.resolve()}"
    raise InputError("--mlflow: no mlflow.db in runs/ or here; name the server with --uri or MLFLOW_TRACKING_URI")
