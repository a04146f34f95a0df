"""A small shop that charges 500 orders through a hard day; ``python -m example_project.demo`` runs it."""
