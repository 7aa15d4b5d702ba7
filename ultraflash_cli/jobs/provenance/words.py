"""What a tag or a report says, in words for people."""

__all__ = ["corrected"]


def corrected(share: float) -> str:
    """Return in words which share of the pixels the guard has corrected."""
    percent = f"{100 * share:.2g}" if share >= 0.0001 or not share else "under 0.01"
    return f"{percent} % of the pixels corrected towards the source"
