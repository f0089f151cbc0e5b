"""Reader of what camtraptools keeps beside Camtrap DP: crops of animals, and labels of photos."""

from collections import Counter
from pathlib import Path

from fieldguide.errors import DataError
from fieldguide.photos.forms.camera_traps import (
    folder_of,
    names_of_columns,
    photos_of,
    posix,
    rows_of,
    within,
)
from fieldguide.photos.forms.form import EVENT, LABEL, PATH, PLACE, SPLIT, Form, Known

_CROPS = ("filePath", "label", "split", "eventID", "deploymentID", "location", "aiLabel")
_LABELS = frozenset({"filePath", "scientificName", "genus", "family", "order", "class"})
_PACKAGE = {
    "deployments.csv": {"deploymentID", "locationID"},
    "media.csv": {"mediaID", "deploymentID", "filePath", "fileMediatype"},
    "observations.csv": {"observationID", "deploymentID", "observationLevel"},
}


def read_camtraptools(place: Path) -> Form | None:
    """Return the crops of a folder with `crops.csv`, or of that file; or the labels of photos.

    Crops have the label as it was given, not as folders spell it. Event: eventID; place: location.
    Labels are tables that `camtraptools labels` writes, of which a photo without a name is `blank`;
    the place is its folder, as each camera's card is. Source: camtraptools 0.8.1.

    Raises DataError for its own package, whose times have no zone until it is exported.
    """
    file = place / "crops.csv" if place.is_dir() else place
    names = names_of_columns(file)
    if names >= {*_CROPS}:
        rows = []
        for _, (path, label, split, event, deployment, spot, ai) in rows_of(file, _CROPS):
            spot = spot or deployment
            row = {PATH: posix(path), LABEL: label, SPLIT: split, EVENT: within(spot, event)}
            rows.append(row | {PLACE: spot, "aiLabel": ai})
        return photos_of("camtraptools' crops", file.parent, rows, left=Counter())
    if names == _LABELS:
        listed = [cells for _, cells in rows_of(file, ("filePath", "scientificName"))]
        rows = [
            {PATH: posix(path), LABEL: name or "blank", PLACE: folder_of(path)}
            for path, name in listed
        ]
        rules = ["a photo without a name is `blank`"]
        return photos_of("camtraptools' labels", file.parent, rows, rules=rules, left=Counter())
    whole = (place / "datapackage.json").is_file()
    if not whole and all(
        names_of_columns(place / table) >= columns for table, columns in _PACKAGE.items()
    ):
        raise DataError(
            f"{place}: tables of Camtrap DP without datapackage.json, so times have no zone",
            hint="`camtraptools export` writes a whole package, if they are those of camtraptools",
        )
    return None


FORMS = (Known("camtraptools", read_camtraptools),)
