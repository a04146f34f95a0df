"""An app with a table of effects."""
