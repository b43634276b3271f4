"""Download URLs of the challenge checkpoints: the organisers' repositories at a fixed commit."""

_REPOSITORY = "https://raw.githubusercontent.com/Amazingren/{}/{}/model_zoo/{}"


def ntire2026_url(filename: str) -> str:
    """Return the URL of a checkpoint of the NTIRE 2026 efficient super-resolution challenge."""
    return _REPOSITORY.format("NTIRE2026_ESR", "4592ce6db68b395699f13e7e2a4e3baf317ef1c6", filename)


def ntire2025_url(filename: str) -> str:
    """Return the URL of a checkpoint of the NTIRE 2025 efficient super-resolution challenge."""
    return _REPOSITORY.format("NTIRE2025_ESR", "b69fb668c0362deb696eecbfdebfaa5c2fcdfcb4", filename)
