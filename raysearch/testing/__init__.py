"""Stand-ins, synthetic studies and a simulator, for tests and benchmarks."""
