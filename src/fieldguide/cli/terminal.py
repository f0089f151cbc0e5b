"""The two streams: data go to stdout, messages to stderr. Names are text, never markup."""

from rich.console import Console

stdout = Console(highlight=False, soft_wrap=True, markup=False)
stderr = Console(stderr=True, highlight=False, markup=False)
