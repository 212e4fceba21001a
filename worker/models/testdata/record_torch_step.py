#!/usr/bin/env python3
"""Records training steps of PyTorch as the file that tests/torch_step.rs compares with.

usage: record_torch_step.py digits.csv.gz torch_step.safetensors

Recorded with PyTorch 2.15.0 on the CPU, one thread, without dropout (masks cannot be shared). All
tensors are f32 in PyTorch's own layout: a linear weight is [outputs, inputs].

  samples [8, 64], labels [8]          the batch: the first digits of the file, divided by 16
  cnn.*                                channels [4, 8], hidden 16; mlp.*: hidden [16]
    <model>.init.<parameter>           before the step
    <model>.grad.<parameter>           gradient of the mean cross entropy
    <model>.adamw.<parameter>          after one step of AdamW
    <model>.loss, <model>.right        mean loss, number of right answers
  mlp.<optimizer>3.<parameter>         after three steps on the batch: sgd, adam, adamw

The optimizers' constants are in OPTIMIZERS below and in the test. Weights decay, biases do not.
"""
import csv
import gzip
import json
import struct
import sys

import torch
import torch.nn.functional as F
from torch import nn

OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.01, betas=(0.9, 0.999), eps=1e-8),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.999), eps=1e-8),
}
WEIGHT_DECAY = 0.1


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 8, 3, padding=1)
        self.fc1 = nn.Linear(8 * 2 * 2, 16)
        self.fc2 = nn.Linear(16, 10)

    def forward(self, x):
        x = x.reshape(-1, 1, 8, 8)
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 16)
        self.fc2 = nn.Linear(16, 10)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)))


def optimizer(name, model):
    named = list(model.named_parameters())
    return OPTIMIZERS[name]([
        {"params": [p for n, p in named if n.endswith("weight")], "weight_decay": WEIGHT_DECAY},
        {"params": [p for n, p in named if n.endswith("bias")], "weight_decay": 0.0},
    ])


def write_safetensors(path, tensors):
    header, data = {"__metadata__": {"torch": torch.__version__}}, b""
    for name, tensor in tensors.items():
        values = tensor.detach().to(torch.float32).contiguous().flatten().tolist()
        start = len(data)
        data += struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def main(source, target):
    torch.set_num_threads(1)
    torch.manual_seed(7)
    with gzip.open(source, "rt") as file:
        rows = [[float(field) for field in row] for _, row in zip(range(8), csv.reader(file))]
    samples = torch.tensor([row[:64] for row in rows]) / 16
    labels = torch.tensor([int(row[64]) for row in rows])
    tensors = {"samples": samples, "labels": labels}

    def keep(prefix, pairs):
        for name, value in pairs:
            tensors[f"{prefix}.{name}"] = value.detach().clone()

    for name, model in (("cnn", Cnn()), ("mlp", Mlp())):
        first = {n: p.detach().clone() for n, p in model.named_parameters()}
        keep(f"{name}.init", first.items())
        scores = model(samples)
        loss = F.cross_entropy(scores, labels)
        loss.backward()
        keep(name, [("loss", loss), ("right", (scores.argmax(1) == labels).sum())])
        keep(f"{name}.grad", [(n, p.grad) for n, p in model.named_parameters()])
        optimizer("adamw", model).step()
        keep(f"{name}.adamw", model.named_parameters())
        if name == "mlp":
            for rule in OPTIMIZERS:
                model.load_state_dict(first)
                updates = optimizer(rule, model)
                for _ in range(3):
                    updates.zero_grad()
                    F.cross_entropy(model(samples), labels).backward()
                    updates.step()
                keep(f"mlp.{rule}3", model.named_parameters())
    write_safetensors(target, tensors)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
