#!/usr/bin/env bash
# A Ray cluster inside a Slurm job, and a search on it. Options of sbatch come before the script, those of the search behind:
#
#   sbatch --nodes=4 --gpus-per-node=1 --cpus-per-task=8 --time=12:00:00 scripts/slurm.sh my-space.yaml --out /shared/runs/first
#   sbatch --nodes=4 ... scripts/slurm.sh --resume /shared/runs/first
#   sbatch --array=0-2%1 --nodes=4 ... scripts/slurm.sh --resume /shared/runs/first    # three jobs, one after another
#
# The head and the search are on the first node. Run it from the project's folder, on storage that all nodes share;
# PYTHON names the interpreter (default: .venv/bin/python). SIGTERM ten minutes before the time limit lets the search write
# its front and say how to go on.
#SBATCH --job-name=raysearch
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=B:TERM@600
#SBATCH --open-mode=append
set -euo pipefail

python=${PYTHON:-.venv/bin/python}
nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 20000)) # of its own: other jobs may share the node
export RAY_ADDRESS=$address:$port RAY_AUTH_MODE=token RAY_TMPDIR=/tmp/ray-$SLURM_JOB_ID
RAY_AUTH_TOKEN=$("$python" -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN

on() { srun --nodes=1 --ntasks=1 --overlap --nodelist="$1" env -u RAY_ADDRESS "$python" -m ray.scripts.scripts "${@:2}"; }
amount=(--num-cpus="${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}")
[ -n "${SLURM_GPUS_ON_NODE:-}" ] && amount+=(--num-gpus="$SLURM_GPUS_ON_NODE")

on "$head" start --head --block --include-dashboard=false --node-ip-address="$address" --port="$port" \
    --temp-dir="$RAY_TMPDIR" "${amount[@]}" &
for _ in $(seq 60); do
    "$python" -c "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)" "$address" "$port" \
        2>/dev/null && break
    sleep 2
done
for node in "${nodes[@]:1}"; do
    on "$node" start --block --address="$RAY_ADDRESS" "${amount[@]}" &
done

"$python" -m raysearch search "$@" &
running=$!
trap 'kill -TERM "$running"' TERM
status=0
wait "$running" || status=$?
while kill -0 "$running" 2>/dev/null; do # a signal has ended the first wait
    status=0
    wait "$running" || status=$?
done
kill $(jobs -p) 2>/dev/null || true
exit "$status"
