#!/usr/bin/env bash
# torch 2.15.0 with onnxscript 0.7.2: a model that `torch.onnx.export` writes holds the paths and the
# source lines of the machine that exported it.
#
# The exporter of today (`dynamo=True`, the default) keeps with every node the stack trace that led to
# it, as metadata of the node: folders of the home directory, file names and lines of the program's
# own source. They are part of the ONNX file, also with `verbose=False`, and after `optimize=True`.
# The older exporter (`dynamo=False`) writes none with `verbose=False`.
# Why it surprises: an ONNX file is what one gives to others, and weights and operations are all that
# one expects in it. It also makes two exports of the same network from two folders differ.
# Way out: clear `metadata_props` (and `doc_string`) of every node before the file is written.
#
# Output seen (Python 3.11, Linux):
#   dynamo=True:                      folder in the file: True, source line in the file: True
#   dynamo=True, verbose=False:       folder in the file: True, source line in the file: True
#   dynamo=False:                     folder in the file: False, source line in the file: False
#   dynamo=True, metadata cleared:    folder in the file: False, source line in the file: False
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/python -m pip install -q --no-compile --disable-pip-version-check \
    torch==2.15.0 onnx==1.23.2 onnxscript==0.7.2 numpy==2.4.6
mkdir private-folder

cat > private-folder/network.py <<'PYTHON'
"""A network, exported in several ways."""

import logging
import warnings
from pathlib import Path

import onnx
import torch

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 3)

    def forward(self, images):
        return self.layer(images).relu()  # a-line-of-mine


def told(what, path):
    content = Path(path).read_bytes()
    found = b"private-folder" in content, b"a-line-of-mine" in content
    print(f"{what + ':':33} folder in the file: {found[0]}, source line in the file: {found[1]}")
    return found


network, example = Network().eval(), (torch.zeros(2, 4),)
torch.onnx.export(network, example, "a.onnx", dynamo=True, external_data=False)
torch.onnx.export(network, example, "b.onnx", dynamo=True, external_data=False, verbose=False)
torch.onnx.export(network, example, "c.onnx", dynamo=False, verbose=False)
model = onnx.load("b.onnx")
for node in model.graph.node:
    node.ClearField("metadata_props")
    node.ClearField("doc_string")
onnx.save(model, "d.onnx")
found = [
    told("dynamo=True", "a.onnx"),
    told("dynamo=True, verbose=False", "b.onnx"),
    told("dynamo=False", "c.onnx"),
    told("dynamo=True, metadata cleared", "d.onnx"),
]
assert found == [(True, True), (True, True), (False, False), (False, False)], found
PYTHON

environment/bin/python private-folder/network.py
