"""Task definitions of viewpoint learning, one YAML a task."""
