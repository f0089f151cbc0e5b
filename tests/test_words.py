from fieldguide import words


def test_a_count_has_its_noun_in_the_right_number() -> None:
    counts = [words.count(number, "photo") for number in (0, 1, 2, 1200)]
    assert counts == ["0 photos", "1 photo", "2 photos", "1,200 photos"]


def test_of_many_names_some_are_shown_and_the_others_counted() -> None:
    assert words.some([]) == ""
    assert words.some(["a", "b", "c"]) == "a, b, c"
    assert words.some(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert words.some(["a", "b", "c"], most=2) == "a, b and 1 more"
