#!/usr/bin/env bash
# torch 2.15.0 with onnxscript 0.7.2: of parameters that happen to be equal when a network is
# exported, one is left in the ONNX file, under one of their names.
#
# The exporter keeps the names of parameters for its initializers, so that other weights of the same
# network can be put in by name: another fold's, a later epoch's, those of an average. But tensors of
# equal content become one. A fresh network is full of them: all biases of equal length are 0, all
# scales of norms 1. After an export of such a network most names are missing, and a weight that is
# put in by a name that is left changes every layer that shares it. A bias of zeros is left out
# altogether, so that there is no place for the trained one.
# Why it surprises: whether a name is in the file depends on values, not on the network; an export of
# trained weights has all names, and the same code with fresh ones loses them without a word.
# Way out: export with drawn values, no two of them equal, and put the real ones in afterwards; or
# look whether every parameter's name is among the initializers.
#
# Output seen (Python 3.11, Linux):
#   fresh:   1 of 6 parameters by name; missing: 0.bias, 1.bias, 1.weight, 2.bias, 2.weight
#   trained: 6 of 6 parameters by name; missing: none
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/python -m pip install -q --no-compile --disable-pip-version-check \
    torch==2.15.0 onnx==1.23.2 onnxscript==0.7.2 numpy==2.4.6

cat > finding.py <<'PYTHON'
"""Export a network whose layers are equal at first, and one whose layers are not."""

import logging
import warnings

import onnx
import torch

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)


def told(what, network):
    torch.onnx.export(network, (torch.zeros(2, 4),), "m.onnx", dynamo=True, external_data=False)
    names = {each.name for each in onnx.load("m.onnx").graph.initializer}
    missing = sorted(name for name, _ in network.named_parameters() if name not in names)
    kept = len(names & {name for name, _ in network.named_parameters()})
    print(f"{what + ':':8} {kept} of 6 parameters by name; missing: {', '.join(missing) or 'none'}")
    return missing


network = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(3))).eval()
with torch.no_grad():
    for layer in network:
        layer.weight.copy_(torch.eye(4))
        layer.bias.zero_()
fresh = told("fresh", network)
with torch.no_grad():
    for number, parameter in enumerate(network.parameters()):
        parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape) + number)
assert not told("trained", network)
assert fresh == ["0.bias", "1.bias", "1.weight", "2.bias", "2.weight"], fresh
PYTHON

environment/bin/python finding.py
