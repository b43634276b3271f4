"""Comparison of the shipped recipes with the transcription of the report, `report_recipes.toml`."""
