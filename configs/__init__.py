"""Challenge rules and training recipes, as TOML files."""
