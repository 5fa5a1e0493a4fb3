# raysearch with the locked versions, for one machine, for nodes of a Ray cluster, and for cluster-kuberay.yaml:
#
#   docker build -t raysearch .
#   docker run --rm --gpus all --shm-size 8g -v /data:/shared raysearch raysearch search my-space.yaml --out /shared/runs/first
#
# Torch brings its CUDA libraries; the machine needs NVIDIA's driver and container toolkit.
FROM python:3.11-slim

# wget is what KubeRay asks a pod's health by.
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/*

# As in scripts/environment: torch before what is built against it.
WORKDIR /opt/raysearch
COPY requirements.lock ./
RUN pip install --no-cache-dir --constraint requirements.lock setuptools wheel \
    && pip install --no-cache-dir --constraint requirements.lock "$(grep '^torch==' requirements.lock)" \
    && pip install --no-cache-dir --no-deps --no-build-isolation --requirement requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY raysearch raysearch
COPY search_spaces search_spaces
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

RUN useradd --create-home --uid 1000 ray
USER ray
WORKDIR /home/ray
CMD ["raysearch", "--help"]
