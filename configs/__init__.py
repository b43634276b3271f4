"""Rules of contests and recipes of trainings, as TOML."""
