"""Where the organisers of the challenge publish checkpoints: their repositories, at one commit."""

_REPOSITORY = "https://raw.githubusercontent.com/Amazingren/{}/{}/model_zoo/{}"


def esr2026(file: str) -> str:
    """The address of a checkpoint of the NTIRE 2026 challenge."""
    return _REPOSITORY.format("NTIRE2026_ESR", "4592ce6db68b395699f13e7e2a4e3baf317ef1c6", file)


def esr2025(file: str) -> str:
    """The address of a checkpoint of the NTIRE 2025 challenge."""
    return _REPOSITORY.format("NTIRE2025_ESR", "b69fb668c0362deb696eecbfdebfaa5c2fcdfcb4", file)
