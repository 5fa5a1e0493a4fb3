"""Tables 2 and 5 of arXiv 2604.24380 (structural pruning of large vision-language models), as printed."""

from dataclasses import dataclass

import numpy as np

from raysearch.evaluation.retention import Results

BENCHMARKS = ("MMMU", "SQA", "MathVista", "AI2D", "MME-C", "MME-P", "POPE", "DocVQA", "GQA")
PERFECT = {"MME-C": 800.0, "MME-P": 2000.0}
"""The perfect score; 100 for the others."""

# Model, mode, % of the decoder removed, the nine benchmarks, AVG, AVG-%.
PRUNED = """
llava    dense  0 35.10 68.67 26.70 54.80 363.21 1511.33 86.99 28.10 61.98 53.70   100
llava    width 15 32.40 63.21 23.10 45.40 268.93 1432.47 86.57 23.90 59.34 48.80 90.87
llava    width 30 31.00 54.29 15.80 37.80 253.21 1174.93 86.29 17.90 52.59 42.90 79.88
llava    width 45 27.60 12.10  5.40 13.40  70.00  347.45 45.96  5.30 20.86 17.42 32.43
llava    width 60 23.30  0.40  1.30  1.20   2.14   19.24  3.94  0.80  0.43  3.62  6.75
llava    layer 15 32.70 59.64 14.80 32.10 210.71  921.88 78.69 16.50 42.18 38.78 72.22
llava    layer 30 31.80 55.23 13.50 29.70 202.14  701.83 86.38 14.60 42.77 37.15 69.18
llava    layer 45 26.90  3.82  5.40 10.50 132.86  616.63 51.69  6.10 14.39 18.47 34.40
llava    layer 60 25.80     0     0     0      0       0     0     0     0  2.87  5.34
internvl dense  0 43.20 93.30 53.70 76.90 547.50 1596.71 88.00 87.70 62.57 72.63   100
internvl width 15 42.70 92.96 38.80 72.40 527.86 1594.37 88.09 80.20 58.43 68.81 94.74
internvl width 30 33.30 68.82 28.80 44.50 397.14 1300.60 85.20 64.20 42.39 53.54 73.72
internvl width 45 24.00 12.30  6.20 10.80 260.20  980.00 83.00 25.00 22.00 29.43 40.52
internvl width 60 22.30  0.00  0.40  0.50   0.51   14.34 10.00  0.00  3.72  5.12  7.05
internvl layer 15 43.60 93.12 22.50 70.20 510.10 1588.30 88.15 78.30 52.35 65.71 90.48
internvl layer 30 28.30 62.82 18.40 24.50 220.90 1200.60 73.20 53.10 27.39 41.71 57.42
internvl layer 45 24.68  8.80  1.20  8.80 220.10  887.35 80.00 12.00 16.00 24.82 34.17
internvl layer 60 21.30  0.00  0.40  0.50   0.31    6.34  0.20  0.00  2.53  3.48  4.79
bunny    dense  0 34.10 70.70 25.80 60.49 289.30 1487.71 87.82 22.80 54.72 51.89   100
bunny    width 15 30.90 65.64 23.40 55.73 242.50 1207.85 87.94 18.20 51.83 47.15 90.87
bunny    width 30 28.40 55.73 14.20 43.97 199.64  807.95 87.13 12.50 45.65 39.21 75.58
bunny    width 45 25.70  3.42  5.10  5.56 200.00  618.25 83.12  4.80 37.92 24.61 47.44
bunny    width 60 24.80  0.00  1.20  0.20 141.07  293.23  2.34  0.80  6.12  7.53 14.51
bunny    layer 15 33.80 69.66 18.80 52.73 271.43 1456.41 87.91 15.80 29.42 46.10 88.84
bunny    layer 30 29.00 28.76 10.10 34.97 272.86 1273.34 86.50 10.50 24.77 35.82 69.03
bunny    layer 45 23.90  3.47  8.40  3.56 191.43  867.37 80.09 11.20 16.85 23.86 45.99
bunny    layer 60 26.60 17.15  4.20  0.20   0.71   55.92  0.02  3.90  0.02  6.11 11.77
"""
"""Table 2: no recovery."""

RECOVERED = """
llava    layer 15 36.40 68.42 25.50 53.70 337.86 1442.35 86.94 27.60 61.20 52.68 98.10
llava    layer 30 36.00 68.82 23.40 50.50 318.57 1496.60 85.98 26.10 60.34 51.75 96.38
llava    width 45 30.80 52.92 20.20 48.40 215.00 1191.17 85.74 23.70 57.74 45.10 83.99
llava    width 60 27.70 46.26 18.00 46.30 211.79 1085.97 84.06 22.20 52.32 41.96 78.13
internvl layer 15 42.80 92.47 53.22 76.21 542.61 1582.42 87.21 86.92 62.01 71.98 99.12
internvl layer 30 41.45 89.53 51.53 73.79 525.36 1532.14 84.44 84.15 60.04 69.69 95.96
internvl width 45 37.24 80.43 46.29 66.30 472.00 1376.53 75.87 75.61 53.94 62.61 86.22
internvl width 60 34.29 74.06 42.63 61.05 434.62 1267.52 69.86 69.62 49.67 57.65 79.39
bunny    layer 15 33.00 70.00 24.20 59.80 304.29 1457.06 87.97 21.80 54.56 51.36 98.98
bunny    layer 30 32.35 68.12 22.60 57.20 252.51 1349.91 87.53 20.80 53.08 48.97 94.37
bunny    width 45 29.15 63.06 21.00 55.50 244.64 1281.66 87.09 19.80 52.31 46.95 90.48
bunny    width 60 28.10 53.20 19.40 53.90 216.07 1115.33 86.73 18.80 48.72 43.51 83.86
"""
"""Table 5: the best recipes, all trained by cross-entropy and the distance of the last hidden states."""


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    model: str
    mode: str
    ratio: int
    results: Results
    """One score per benchmark, from 0 to 1."""
    average: float
    retention: float
    """AVG-%, in percent."""


def rows(table: str) -> list[Row]:
    """The rows of PRUNED or RECOVERED."""
    return [_row(line.split()) for line in table.strip().splitlines()]


def _row(cells: list[str]) -> Row:
    scores = {
        name: np.array([float(cell) / PERFECT.get(name, 100.0)])
        for name, cell in zip(BENCHMARKS, cells[3:12], strict=True)
    }
    images = {name: np.zeros(1) for name in BENCHMARKS}
    results = Results(scores, images, dict.fromkeys(BENCHMARKS, 0.0))
    return Row(cells[0], cells[1], int(cells[2]), results, float(cells[12]), float(cells[13]))
