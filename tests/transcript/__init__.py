"""The trainings of the report, from `report_recipes.toml`, beside the recipes that are shipped."""
