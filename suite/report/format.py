"""Figures as people read them."""


def clock_text(seconds: float) -> str:
    """Seconds as people read a countdown: 23:40:00, 4:59, 0:07."""
    hours, rest = divmod(int(seconds), 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"
