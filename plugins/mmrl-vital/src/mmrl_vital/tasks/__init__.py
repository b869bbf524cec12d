"""Task definitions of VITAL, one YAML a task."""
