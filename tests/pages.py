"""Pages of reports as texts."""

import re


def without_scripts(text: str) -> str:
    return re.sub(r"<script.*?</script>", " ", text, flags=re.DOTALL)


def words(body: str) -> str:
    """The text of a page's part, without elements and scripts."""
    text = re.sub(r"<[^>]*>", " ", without_scripts(body))
    return re.sub(r"\s+", " ", text).replace("\xa0", " ")
