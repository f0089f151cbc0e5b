"""Darwin Core archives: of dwcahandler, and by hand as GBIF and iNaturalist write them.

Sources: GBIF, Download formats; GBIF, Darwin Core Archives: How-to Guide.
"""

import shutil
import zipfile
from pathlib import Path

import pytest

from fieldguide.errors import DataError
from fieldguide.photos.forms.darwin_core import FORMS, read_darwin_core
from tests.photos import put

DWC, DC, GBIF = (
    "http://rs.tdwg.org/dwc/terms/",
    "http://purl.org/dc/terms/",
    "http://rs.gbif.org/terms/1.0/",
)
CORE = (
    *(GBIF + "gbifID", DC + "license", DWC + "recordedBy", DWC + "eventDate", DWC + "locality"),
    *(DWC + "scientificName", DWC + "kingdom", DWC + "class", DWC + "genus", GBIF + "species"),
)
MEDIA = (GBIF + "gbifID", DC + "type", DC + "identifier", DC + "license")
TABS = r'fieldsTerminatedBy="\t" linesTerminatedBy="\n" fieldsEnclosedBy="" ignoreHeaderLines="1"'


def part(
    tag: str, kind: str, file: str, terms: tuple[str, ...], key: str, style: str = TABS
) -> str:
    fields = "".join(f'<field index="{n}" term="{t}"/>' for n, t in enumerate(terms))
    return (
        f'<{tag} encoding="utf-8" {style} rowType="{kind}"><files><location>{file}</location>'
        f'</files><{key} index="0"/>{fields}</{tag}>'
    )


OCCURRENCES = part("core", DWC + "Occurrence", "occurrence.txt", CORE, "id")
PHOTOS = part("extension", GBIF + "Multimedia", "multimedia.txt", MEDIA, "coreid")
OAK = ("Quercus robur L.", "Plantae", "Magnoliopsida", "Quercus", "Quercus robur")
ELM = ("Ulmus L.", "Plantae", "Magnoliopsida", "Ulmus", "")
MAPLE = ("Acer campestre L.", "Plantae", "Magnoliopsida", "Acer", "Acer campestre")
RECORDS = (
    ("4011", "CC0", "Ann", "2020-05-04T10:11:12", 'the "old oak', *OAK),
    ("4012", "CC0", "", "", "", *ELM),
    ("4013", "CC0", "Bo", "2020-05-04/2020-05-06", 'a "mill" \ufb01eld', *MAPLE),
    ("4014", "CC0", "Bo", "2021", "", *MAPLE),
)
SHOWN = (
    ("4011", "StillImage", "https://x.example/photos/77/original.jpeg?1", "CC-BY"),
    ("4011", "StillImage", "https://x.example/photos/78/original.jpeg", "CC-BY-NC"),
    ("4013", "StillImage", "https://y.example/[file/HERB-9.JPG", ""),
    ("4013", "StillImage", "https://y.example/file/HERB-9.JPG", ""),
)


def lines(path: Path, terms: tuple[str, ...], rows: tuple[tuple[str, ...], ...], end: str) -> None:
    names = tuple(term.rpartition("/")[2] for term in terms)
    text = "".join("\t".join(row) + end for row in (names, *rows))
    path.write_bytes(text.encode())


def archive(
    root: Path,
    parts: str = OCCURRENCES + PHOTOS,
    records: tuple[tuple[str, ...], ...] = RECORDS,
    media: tuple[tuple[str, ...], ...] = SHOWN,
    end: str = "\n",
) -> Path:
    put(root, "images/4011.jpg")
    tag = 'archive xmlns="http://rs.tdwg.org/dwc/text/" metadata="metadata.xml"'
    text = f"<?xml version='1.0' encoding='UTF-8'?>\n<{tag}>{parts}</archive>"
    (root / "meta.xml").write_text(text, encoding="utf-8")
    lines(root / "occurrence.txt", CORE, records, end)
    lines(root / "multimedia.txt", MEDIA, media, end)
    return root


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_photos_by_the_ids_of_records(tmp_path: Path, end: str) -> None:
    put(
        archive(tmp_path, end=end),
        "images/4012_1.JPG",
        "images/4013-1.png",
        "4013-2.jpg",
        "x/9.jpg",
    )
    for place in (tmp_path, tmp_path / "occurrence.txt", tmp_path / "multimedia.txt"):
        form = read_darwin_core(place)
        assert form is not None
        assert form.base == tmp_path
        assert form.header == (
            *("path", "label", "event", "place", "time", "licence", "scientificName"),
            *("kingdom", "class", "genus", "species"),
        )
        quiet = 'Bo | 2020-05-04 | a "mill" \ufb01eld'
        assert sorted(row[:6] for row in form.rows) == [
            ("4013-2.jpg", "Acer campestre", "4013", quiet, "", "CC0"),
            (
                *("images/4011.jpg", "Quercus robur", "4011", 'Ann | 2020-05-04 | the "old oak'),
                *("2020-05-04T10:11:12", "CC-BY | CC-BY-NC"),
            ),
            ("images/4012_1.JPG", "", "4012", "", "", "CC0"),
            ("images/4013-1.png", "Acer campestre", "4013", quiet, "", "CC0"),
        ]
        assert form.left_out == {"photos of no record": 1, "records without a photo": 1}
        assert "photos named by the record's id; labels: species (1 without)" in form.told


def test_photos_by_their_addresses(tmp_path: Path) -> None:
    (put(archive(tmp_path), "p/77.jpg", "p/78.jpg", "p/HERB-9.jpg") / "images/4011.jpg").unlink()
    form = read_darwin_core(tmp_path)
    assert form is not None
    assert [row[:3] for row in form.rows] == [
        ("p/77.jpg", "Quercus robur", "4011"),
        ("p/78.jpg", "Quercus robur", "4011"),
        ("p/HERB-9.jpg", "Acer campestre", "4013"),
    ]
    assert "photos named by the last part of their address" in form.told


def test_both_ways_to_name_are_refused(tmp_path: Path) -> None:
    media = (("4013", "StillImage", "https://x.example/4011.jpg", ""),)
    with pytest.raises(DataError, match=r"`4011` may be of record 4011 by its name, or of 4013"):
        read_darwin_core(archive(tmp_path, media=media))


def test_an_export_of_inaturalist(tmp_path: Path) -> None:
    # separated by commas, with quotation marks, and without a column of species
    put(tmp_path, "55.jpg", "56.jpg")
    style = 'fieldsTerminatedBy="," fieldsEnclosedBy="&quot;" ignoreHeaderLines="1"'
    terms = (DWC + "occurrenceID", *(DWC + n for n in ("scientificName", "locality", "taxonRank")))
    core = part("core", DWC + "Occurrence", "observations.csv", terms, "id", style)
    terms = (DC + "type", DC + "type", DC + "identifier")
    media = part("extension", GBIF + "Multimedia", "media.csv", terms, "coreid", style)
    extra = '<field default="Animalia" term="http://rs.tdwg.org/dwc/terms/kingdom"/></core>'
    text = f"<archive>{core.replace('</core>', extra)}{media}</archive>"
    (tmp_path / "meta.xml").write_text(text)
    rows = ('7,Bufo bufo,"a ""pond"",\nsouth",species', "8,Bufo,,genus")
    (tmp_path / "observations.csv").write_text("\n".join(("id,name,locality,rank", *rows)))
    rows = ("7,x,https://s.example/photos/55/large.jpg", "8,x,https://s.example/photos/56/l.jpg")
    (tmp_path / "media.csv").write_text("\n".join(("id,type,identifier", *rows)))
    form = read_darwin_core(tmp_path)
    assert form is not None
    assert form.header[6:] == ("scientificName", "kingdom", "taxonRank")
    assert [row[:6] for row in form.rows] == [
        ("55.jpg", "Bufo bufo", "7", ' |  | a "pond",\nsouth', "", ""),
        ("56.jpg", "", "8", "", "", ""),
    ]


def test_an_archive_of_dwcahandler(tmp_path: Path) -> None:
    # written by tests/forms/make_dwcahandler.sh
    shutil.copytree(Path(__file__).parent / "forms" / "dwcahandler", tmp_path, dirs_exist_ok=True)
    put(tmp_path, "1.jpg", "2.jpg", "HERB-3.png", "HERB-4.jpg", "HERB-5.jpg", "HERB-6.jpg")
    form = read_darwin_core(tmp_path)
    assert form is not None
    oak = ("Quercus robur", "r1", 'Ann | 2020-05-04 | the "old oak", by the mill')
    assert [row[:6] for row in form.rows] == [
        ("1.jpg", *oak, "2020-05-04T10:11:12", "CC-BY | CC0"),
        ("2.jpg", *oak, "2020-05-04T10:11:12", "CC-BY | CC0"),
        ("HERB-3.png", "Acer campestre", "r2", "Bo | 2020-05-05 | field\nsouth", "", "CC0"),
        ("HERB-4.jpg", "", "r3", "Bo | 2020-05-05 | a; b, c", "", "CC0"),
        ("HERB-5.jpg", "\xdclmus minor", "r4", "", "", ""),
    ]
    assert form.left_out == {"photos of no record": 1, "records without a photo": 1}
    assert "labels: scientificName (1 without)" in form.told


SHORT = (*RECORDS[:1], RECORDS[1][:4])


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"records": SHORT}, "occurrence.txt, row 3: 4 cells, meta.xml needs 10 or more"),
        ({"records": RECORDS[:1] * 2}, "occurrence.txt: record `4011` stands there twice"),
        (
            {"parts": OCCURRENCES.replace("Occurrence", "Taxon")},
            "expected rows of Occurrence, found",
        ),
        ({"parts": PHOTOS}, "meta.xml: expected a `core`"),
        ({"parts": "<core"}, "meta.xml: not XML"),
        ({"parts": OCCURRENCES.replace("occurrence.txt", "../x.txt")}, "expected one `location`"),
        ({"parts": OCCURRENCES.replace("occurrence.txt", "x.txt")}, "names x.txt, which is not"),
        ({"parts": OCCURRENCES.replace('<id index="0"/>', "")}, "expected an id with its index"),
        ({"parts": OCCURRENCES.replace('"5"', '"five"')}, "expected whole numbers: .*five"),
        (
            {"parts": OCCURRENCES.replace("scientificName", "a").replace("species", "b")},
            "expected a field `species` or `scientificName`",
        ),
        ({"parts": OCCURRENCES.replace('"utf-8"', '"ascii"')}, "occurrence.txt, row 1: 'ascii'"),
    ],
)
def test_a_broken_archive_is_refused(tmp_path: Path, changed: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_darwin_core(archive(tmp_path, **changed))  # type: ignore[arg-type]


def test_photos_of_other_names_are_refused(tmp_path: Path) -> None:
    (put(archive(tmp_path), "x.jpg") / "images/4011.jpg").unlink()
    with pytest.raises(DataError, match=r"none of 1 photo below .* is named by a record's id"):
        read_darwin_core(tmp_path)


def test_a_doctype_and_a_zip_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("meta.xml", "")
    with pytest.raises(DataError, match="archive as a zip") as error:
        read_darwin_core(tmp_path / "a.zip")
    assert "unpack it first" in error.value.hint
    for encoding in ("utf-8", "utf-16"):
        text = '<?xml version="1.0"?><!DocType a [<!ENTITY x "y">]><archive/>'
        (tmp_path / "meta.xml").write_text(text, encoding=encoding)
        with pytest.raises(DataError, match="declares a DOCTYPE"):
            read_darwin_core(tmp_path)


def test_what_is_none(tmp_path: Path) -> None:
    root = archive(tmp_path / "a")
    (root / "labels.csv").write_text("path,label\n")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as file:
        file.writestr("a.jpg", "")
    (tmp_path / "c.zip").write_bytes(b"no zip")
    (put(tmp_path / "d", "oak/1.jpg") / "meta.xml").write_text("<notes/>")
    for name in ("a/labels.csv", "a/images", "b.zip", "c.zip", "d", "away"):
        assert read_darwin_core(tmp_path / name) is None
    assert [known.name for known in FORMS if known.read(root)] == ["darwin-core"]
