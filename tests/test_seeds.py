from hypothesis import given
from hypothesis import strategies as st

from fieldguide.seeds import derive_seed

WORDS = st.text(st.characters(exclude_characters="\x1f", exclude_categories=["Cs"]), max_size=8)
NAMES = st.lists(st.integers() | WORDS, max_size=5)


@given(NAMES)
def test_a_seed_fits_a_signed_64_bit_integer(names: list[int | str]) -> None:
    assert 0 <= derive_seed(*names) < 2**63


@given(NAMES, NAMES)
def test_only_the_same_names_give_the_same_seed(
    one: list[int | str], other: list[int | str]
) -> None:
    assert (derive_seed(*one) == derive_seed(*other)) == (one == other)


def test_a_number_is_not_its_text_and_names_are_not_joined() -> None:
    seeds = {
        derive_seed(*names) for names in [(1,), ("1",), (1, 2), (2, 1), (12,), ("1", 2), (1, "", 2)]
    }
    assert len(seeds) == 7


def test_the_seed_is_the_same_on_every_machine() -> None:
    """Worked out once: another value would change every fit that was ever recorded."""
    assert derive_seed(0, "photo", 1, 2, 3) == 2_615_329_875_966_827_863
