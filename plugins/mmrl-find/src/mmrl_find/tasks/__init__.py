"""Task definitions of FIND, one YAML a task."""
