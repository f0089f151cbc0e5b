#!/usr/bin/env bash
# MAPIE 1.6.0: its control of an accuracy counts one error more than there is for some numbers of
# errors, and then finds no valid threshold where the exact test has one.
#
# `BinaryClassificationController` tests by binomial tails. A performance such as accuracy or
# precision is kept as the risk 1 - mean, a float, and the number of errors is computed back from it
# as ceil(n * risk). 1 - 96/100 is a little more than 4/100, so that 4 errors of 100 count as 5.
# Other numbers round the other way and are right. Promises are not broken, as the error only makes
# the test stricter; but thresholds that are valid are refused, for no reason that the data show, and
# a further error can make a refused number of photos no worse.
# Why it surprises: the documentation gives the binomial test of integer counts, and 3 and 5 errors
# of 100 would look as if the method were merely cautious.
# A way around: give the controller a custom risk that is an error (lower is better): then the mean
# times n is the count to the last bit for most counts; or test with scipy's `binom.cdf` on integers.
#
# Output seen (Python 3.11, mapie 1.6.0, scikit-learn 1.9.1, numpy 2.4.6, scipy 1.17.1):
#   accuracy of at least 0.9 with 95% confidence, 100 photos
#   2 errors: p 0.0059, exact 0.0019
#   3 errors: p 0.0237, exact 0.0078
#   4 errors: p 0.0576, exact 0.0237: refused though valid
#   5 errors: p 0.1172, exact 0.0576
#   10 errors: p 0.5832, exact 0.5832
#   one error too many in 27 of 150 cases (100 and 200 photos, fewer than half of them wrong)
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/python -m pip install -q --disable-pip-version-check \
    mapie==1.6.0 scikit-learn==1.9.1 numpy==2.4.6 scipy==1.17.1

cat > counts.py <<'PYTHON'
"""Ask the controller about a classifier that calls every photo positive, some of them wrongly."""

import warnings

import numpy as np
from mapie.risk_control import BinaryClassificationController
from scipy.stats import binom

LEAST, CONFIDENCE = 0.9, 0.95


def asked(photos: int, errors: int) -> tuple[float, bool]:
    """Return the p-value of the only threshold, and whether it is valid."""
    control = BinaryClassificationController(
        lambda inputs: np.tile([0.1, 0.9], (len(inputs), 1)),
        risk="accuracy",
        target_level=LEAST,
        confidence_level=CONFIDENCE,
        list_predict_params=np.array([0.5]),
        best_predict_param_choice="precision",
    )
    truth = np.ones(photos, dtype=int)
    truth[:errors] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no threshold is valid
        control.calibrate(np.zeros((photos, 1)), truth)
    return float(np.ravel(control.p_values)[0]), len(control.valid_predict_params) > 0


print(f"accuracy of at least {LEAST} with {CONFIDENCE:.0%} confidence, 100 photos")
cases = [(photos, errors) for photos in (100, 200) for errors in range(photos // 2)]
charged = 0
for photos, errors in cases:
    p, valid = asked(photos, errors)
    exact, more = (binom.cdf(count, photos, 1 - LEAST) for count in (errors, errors + 1))
    charged += bool(not np.isclose(p, exact) and np.isclose(p, more))
    if photos == 100 and errors in (2, 3, 4, 5, 10):
        refused = ": refused though valid" if not valid and exact <= 1 - CONFIDENCE else ""
        print(f"{errors} errors: p {p:.4f}, exact {exact:.4f}{refused}")
print(f"one error too many in {charged} of {len(cases)} cases (100 and 200 photos)")
PYTHON
environment/bin/python counts.py | tee seen
grep -q "4 errors: p 0.0576, exact 0.0237: refused though valid" seen
grep -q "10 errors: p 0.5832, exact 0.5832" seen
grep -q "one error too many in 27 of 150 cases" seen
