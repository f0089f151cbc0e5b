#!/usr/bin/env bash
# torch 2.15.0: on the CPU, fused AdamW gives silently wrong steps once a parameter is laid out
# otherwise than its moments, for instance after `net.to(memory_format=torch.channels_last)`.
#
# `Module.to` changes the strides of the convolutions' weights. The moments that the optimizer made
# in earlier steps keep theirs, and `load_state_dict` likewise keeps the strides of a checkpoint that
# a contiguous network wrote. The fused kernel walks weights, gradients and moments in the order of
# memory without comparing strides, so each weight is moved by the moments of another element.
# Neither an exception nor a warning says so.
#
# Why it surprises: a memory format is an optimization that changes no value, `fused` is an
# implementation of the same algorithm, and each alone gives the right weights to 1e-12. Only both
# together, with moments from before, do not. A training that is resumed on a machine where
# channels_last is faster goes wrong and still looks like a training.
#
# Remedy: give each moment the strides of its parameter, torch.empty_like(weight).copy_(moment).
#
# Output seen (Python 3.11, Linux; float64, a learning rate of 0.01, largest difference of a weight
# from plain AdamW in the contiguous format, five steps after the change):
#   plain, channels_last:          1.1e-16
#   fused, contiguous:             1.1e-16
#   fused, channels_last:          8.0e-02
#   fused, channels_last, resumed: 8.0e-02
#   fused, channels_last, remedy:  1.1e-16
#
# The wheel of PyPI brings the CUDA libraries: 5 GB in the temporary folder, two to three minutes.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv environment
environment/bin/python -m pip install -q --no-compile --disable-pip-version-check \
  torch==2.15.0

cat > finding.py <<'PYTHON'
"""Train a small network, change its memory format, and train on."""

import sys
import warnings

import torch
from torch import nn


def trained(*, fused, change=None, remedy=False):
    """Return the weights after five steps, a change of the memory format, and five steps more."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 5)
    ).double()
    images = torch.randn(16, 3, 6, 6, dtype=torch.float64)
    labels = torch.arange(16) % 5
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, fused=fused)

    def train():
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()

    train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if change is not None:
            net.to(memory_format=torch.channels_last)
        if change == "resume":
            checkpoint = optimizer.state_dict()
            optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, fused=fused)
            optimizer.load_state_dict(checkpoint)
        if remedy:
            for weight, state in optimizer.state.items():
                for key in ("exp_avg", "exp_avg_sq"):
                    state[key] = torch.empty_like(weight).copy_(state[key])
        train()
    return [weight.detach() for weight in net.parameters()]


right = trained(fused=False)
differences = {}
for name, settings in {
    "plain, channels_last": {"fused": False, "change": "convert"},
    "fused, contiguous": {"fused": True},
    "fused, channels_last": {"fused": True, "change": "convert"},
    "fused, channels_last, resumed": {"fused": True, "change": "resume"},
    "fused, channels_last, remedy": {"fused": True, "change": "convert", "remedy": True},
}.items():
    pairs = zip(trained(**settings), right, strict=True)
    differences[name] = max((ours - theirs).abs().max().item() for ours, theirs in pairs)
    print(f"{name + ':':<31}{differences[name]:.1e}")

wrong = {name for name, difference in differences.items() if difference > 1e-3}
equal = {name for name, difference in differences.items() if difference < 1e-12}
if wrong != {"fused, channels_last", "fused, channels_last, resumed"} or len(equal) != 3:
    sys.exit("the behaviour has changed")
PYTHON
environment/bin/python -W "ignore:Failed to initialize NumPy" finding.py
