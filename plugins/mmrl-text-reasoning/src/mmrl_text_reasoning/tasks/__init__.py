"""Task definitions of the plugin."""
