"""The files of a study, its trials and its Pareto front."""
