"""Challenge rules, measurements, rankings, submissions and benchmarks."""
