"""Task definitions of Visual-RFT, one YAML a task."""
