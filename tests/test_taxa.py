"""Trees of taxa, the most probable taxon of each photo, and the tables that trees are read from."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldguide.analysis.taxa import Taxonomy, flat
from fieldguide.errors import DataError
from fieldguide.photos import taxonomy

CLASSES = ("monarch", "queen", "admiral", "rose")
TREE = Taxonomy(
    ("order", "genus"),
    (("Lepidoptera", "Danaus"), ("Lepidoptera", "Danaus"), ("Lepidoptera", ""), ("", "")),
)
TABLE = "label,order,genus\nmonarch,Lepidoptera,Danaus\nqueen,Lepidoptera,Danaus\n"
TABLE += "admiral,Lepidoptera,\nrose,,\n"


def test_probabilities_of_a_taxon_are_the_sum_of_its_classes() -> None:
    best = TREE.best(np.array([[0.3, 0.3, 0.4, 0.0], [0.1, 0.1, 0.1, 0.7]]))
    np.testing.assert_allclose(best.confidences, [[0.4, 0.6, 1.0], [0.7, 0.7, 0.7]])
    names = [
        [TREE.name(level, int(node), CLASSES) for level, node in enumerate(row)]
        for row in best.nodes
    ]
    assert names[0] == [("admiral", "label"), ("Danaus", "genus"), ("Lepidoptera", "order")]
    assert names[1] == 3 * [("rose", "label")]  # it has no genus and no order


def test_a_taxon_is_right_if_it_holds_the_class() -> None:
    best = TREE.best(np.array([[0.3, 0.3, 0.4, 0.0]]))
    assert TREE.right(best, np.array([0])).tolist() == [[False, True, True]]
    assert TREE.right(best, np.array([2])).tolist() == [[True, False, True]]
    assert TREE.right(best, np.array([3])).tolist() == [[False, False, False]]


@given(st.lists(st.floats(0.01, 1), min_size=4, max_size=4))
def test_the_coarser_the_surer(weights: list[float]) -> None:
    probabilities = np.array([weights]) / sum(weights)
    (row,) = TREE.best(probabilities).confidences
    assert (np.diff(row) >= -1e-12).all()
    assert row[0] == pytest.approx(probabilities.max())
    np.testing.assert_allclose(flat(4).best(probabilities).confidences, [[probabilities.max()]])


@pytest.mark.parametrize(
    ("ranks", "taxa", "told"),
    [
        (("family", "genus"), (("A", "x"), ("B", "x")), "genus x lies both in A and in B"),
        (("genus",), (("x",), ("x", "y")), "not 1 taxa for every class"),
        (("genus", "genus"), (("x", "y"), ("x", "y")), "ranks of one name"),
        (("label",), (("x",), ("y",)), "or called `label`, `auto`"),
        (("auto",), (("x",), ("y",)), "or called `label`, `auto`"),
    ],
)
def test_what_is_no_tree_is_refused(
    ranks: tuple[str, ...], taxa: tuple[tuple[str, ...], ...], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        Taxonomy(ranks, taxa)


def read(folder: Path, text: str, classes: tuple[str, ...] = CLASSES) -> tuple[Taxonomy, str]:
    told: list[str] = []
    (folder / "taxa.csv").write_text(text)
    return taxonomy.read(folder / "taxa.csv", classes, told.append), told[0]


def test_a_taxonomy_is_read_and_told(tmp_path: Path) -> None:
    found, told = read(tmp_path, TABLE)
    assert found == TREE
    assert told == "taxonomy taxa.csv: classes in `label`, ranks order > genus"
    header, rows = taxonomy.table_of(found, CLASSES)
    assert read(tmp_path, "\n".join(",".join(row) for row in [header, *rows]))[0] == TREE


def test_the_collections_own_table_serves(tmp_path: Path) -> None:
    rows = "file,species,Genus,family,date\n1.jpg,monarch,Danaus,N,1\n2.jpg,monarch,Danaus,N,2\n"
    found, told = read(
        tmp_path, rows + "3.jpg,rose,Rosa,R,3\n4.jpg,oak,Q,F,4\n", ("monarch", "rose")
    )
    assert found == Taxonomy(("family", "Genus"), (("N", "Danaus"), ("R", "Rosa")))
    assert told.endswith("classes in `species`, ranks family > Genus; 1 other class left out")


def test_ranks_of_other_names_are_ordered_by_their_number(tmp_path: Path) -> None:
    found, _ = read(
        tmp_path,
        "name,group,kind\nmonarch,a,insect\nqueen,b,insect\nrose,c,plant\n",
        ("monarch", "queen", "rose"),
    )
    assert found.ranks == ("kind", "group")


def test_rows_of_other_classes_and_without_a_label_are_left_out(tmp_path: Path) -> None:
    rows = "label,kind,group\noak,A,a\noak,B,b\n,C,c\n, ,\n"  # contradictions that do not matter
    text = rows + "monarch,insect,a\nqueen,insect,\n rose ,plant,b\n"
    found, told = read(tmp_path, text, ("monarch", "queen", " rose "))
    assert found.ranks == ("kind", "group")
    assert found.taxa == (("insect", "a"), ("insect", ""), ("plant", "b"))
    assert told.endswith("1 other class left out")
    (tmp_path / "own.csv").write_text("label,sect,tribe\nmonarch,p,x\nqueen,p,\nrose,,y\n")
    kept = taxonomy.read(tmp_path / "own.csv", ("monarch", "queen", "rose"), ordered=True)
    assert kept.ranks == ("sect", "tribe")  # as they stand, whatever their number


def test_species_of_epithets_are_named_with_their_genus(tmp_path: Path) -> None:
    text = "file,family,genus,species\n1.jpg,S,Acer,rubrum\n2.jpg,F,Quercus,rubrum\n"
    found, told = read(tmp_path, text, ("Acer rubrum", "Quercus rubrum"))
    assert found == Taxonomy(("family", "genus"), (("S", "Acer"), ("F", "Quercus")))
    assert "`genus + species`" in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("label,genus\nmonarch,Danaus\n", "3 classes of 4 without a row, such as queen"),
        (TABLE + "rose,Rosales,\n", "rows 5 and 6 give rose different taxa"),
        ("animal,genus\nx,y\n", "no column names classes of the collection, such as `monarch`"),
        ("label\nmonarch\n", "no column of a rank beside `label`"),
        (
            TABLE.replace("admiral,Lepidoptera,", "admiral,Diptera,Danaus"),
            "is no tree: genus Danaus",
        ),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read(tmp_path, text)
