"""Task definitions of UAV-VL-R1, one YAML a task."""
