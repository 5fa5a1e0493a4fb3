"""Opening recovery data at size: CPU time and memory of load, first batch and dry run, next to json.load and datasets.

    python scripts/benchmarks/data.py                    # 200,000 rows of LLaVA's format; a minute of one core
    python scripts/benchmarks/data.py --rows 1000000

Every measurement is a process of its own, one after another, on the same files. Memory is the peak of the process less
that of one which only imports; `again` is what each further worker of a node takes, when the index is in the cache.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

PARTS = {
    "imports": "import numpy, datasets; from raysearch.data import loading",
    "json.load": "rows = json.load(open(path))",
    "json.loads of lines": "rows = [json.loads(line) for line in open(path)]",
    "datasets": "rows = datasets.load_dataset('json', data_files=path, split='train')",
    "datasets, again": "rows = datasets.load_dataset('json', data_files=path, split='train')",
    "raysearch": "rows = loading.load_samples(path)",
    "raysearch, again": "rows = loading.load_samples(path)",
    "raysearch, first batch": "rows = loading.load_samples(path); list(rows[:: len(rows) // 64])",
    "raysearch, dry run": "rows = loading.load_samples(path); loading.check_samples(rows)",
}


def write_rows(path: Path, num_rows: int) -> None:
    """LLaVA's format: a question about a picture and two answers, a kilobyte each."""
    answer = "The picture shows a street with parked cars, two people who cross it, and a shop with a red awning. " * 3
    with path.open("w") as stream:
        stream.write("[" if path.suffix == ".json" else "")
        for index in range(num_rows):
            turns = [
                {"from": "human", "value": f"<image>\nWhat is to be seen in picture {index}?"},
                {"from": "gpt", "value": answer},
                {"from": "human", "value": "What colour is the awning?"},
                {"from": "gpt", "value": answer + "It is red."},
            ]
            row = json.dumps({"id": str(index), "image": "a.png", "conversations": turns})
            last = "]" if index + 1 == num_rows else ",\n"
            stream.write(row + (last if path.suffix == ".json" else "\n"))
        stream.flush()


def measure(part: str, path: Path, cache: Path) -> tuple[float, float]:
    """CPU seconds and peak memory in MB of a process that does a part, its imports included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = f"import json\n{PARTS['imports']}\npath = {str(path)!r}\n"
    code += "" if part == "imports" else PARTS[part] + "\nassert len(rows)\n"
    code += "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "HF_DATASETS_CACHE": str(cache / "datasets")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, int(done.stdout.split()[-1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        from PIL import Image

        Image.new("RGB", (8, 8)).save(folder / "a.png")
        for end in ("json", "jsonl"):
            path = folder / f"rows.{end}"
            write_rows(path, options.rows)
            print(f"\n{options.rows:,} rows of {end}, {path.stat().st_size / 1e6:,.0f} MB")
            seconds, megabytes = measure("imports", path, folder / "cache")
            for part in PARTS:
                if part == "imports" or part == ("json.loads of lines" if end == "json" else "json.load"):
                    continue
                spent, peak = measure(part, path, folder / "cache")
                print(
                    f"{part:24} {max(spent - seconds, 0):7.1f} s of CPU {max(peak - megabytes, 0):8,.0f} MB", flush=True
                )


if __name__ == "__main__":
    main()
