"""Task definitions of R1-AQA, one YAML a task."""
