#!/usr/bin/env python3
"""Records a training step of PyTorch for the families `gpt` and `resnet`.

usage: record_torch_families.py torch_families.safetensors

Recorded with PyTorch 2.15.0 on the CPU, one thread, without dropout. Parameters have the names and the
shapes of the arena's layout (a linear weight is [inputs, outputs]); the models are written with
PyTorch's own layer norm, attention, GELU, convolution, batch norm and cross entropy.

  gpt: 2 blocks of 2 heads, width 8, context 6, vocabulary 13; gpt.tokens, gpt.next [3, 6]
  resnet: width 2, images [2, 16, 16], 3 classes; resnet.samples [4, 2, 16, 16], resnet.labels [4]
    <model>.init.<parameter>       before the step; running values too
    <model>.grad.<parameter>       gradient of the mean cross entropy; for running values: the new ones
    <model>.loss, <model>.right    mean loss, number of right answers
    resnet.evaluated               mean loss of the same samples by the new running values
"""
import sys

import torch
import torch.nn.functional as F

from record_torch_step import write_safetensors

LAYERS, HEADS, WIDTH, CONTEXT, VOCABULARY = 2, 2, 8, 6, 13


def gpt_parameters():
    # Larger than the usual first values, so that attention is not uniform.
    draw = lambda *shape: torch.randn(*shape) * 0.4
    parameters = {"wte.weight": draw(VOCABULARY, WIDTH), "wpe.weight": draw(CONTEXT, WIDTH)}

    def norm(name):
        parameters[f"{name}.weight"] = 1 + draw(WIDTH)
        parameters[f"{name}.bias"] = draw(WIDTH)

    def linear(name, inputs, outputs):
        parameters[f"{name}.weight"] = draw(inputs, outputs)
        parameters[f"{name}.bias"] = draw(outputs)

    for block in range(1, LAYERS + 1):
        norm(f"h{block}.ln_1")
        linear(f"h{block}.attn.c_attn", WIDTH, 3 * WIDTH)
        linear(f"h{block}.attn.c_proj", WIDTH, WIDTH)
        norm(f"h{block}.ln_2")
        linear(f"h{block}.mlp.c_fc", WIDTH, 4 * WIDTH)
        linear(f"h{block}.mlp.c_proj", 4 * WIDTH, WIDTH)
    norm("ln_f")
    return parameters


def gpt(p, tokens):
    norm = lambda x, name: F.layer_norm(x, [WIDTH], p[f"{name}.weight"], p[f"{name}.bias"])
    linear = lambda x, name: F.linear(x, p[f"{name}.weight"].T, p[f"{name}.bias"])
    samples = tokens.shape[0]
    x = F.embedding(tokens, p["wte.weight"]) + p["wpe.weight"]
    for block in range(1, LAYERS + 1):
        parts = linear(norm(x, f"h{block}.ln_1"), f"h{block}.attn.c_attn").split(WIDTH, dim=2)
        heads = [part.view(samples, CONTEXT, HEADS, WIDTH // HEADS).transpose(1, 2) for part in parts]
        attended = F.scaled_dot_product_attention(*heads, is_causal=True)
        attended = attended.transpose(1, 2).reshape(samples, CONTEXT, WIDTH)
        x = x + linear(attended, f"h{block}.attn.c_proj")
        hidden = linear(norm(x, f"h{block}.ln_2"), f"h{block}.mlp.c_fc")
        x = x + linear(F.gelu(hidden, approximate="tanh"), f"h{block}.mlp.c_proj")
    return F.linear(norm(x, "ln_f"), p["wte.weight"]).flatten(0, 1)


def resnet_parameters(channels, width, classes):
    parameters = {}

    def conv(name, inputs, outputs, size):
        parameters[f"{name}.weight"] = torch.randn(outputs, inputs, size, size) * (2 / (inputs * size * size)) ** 0.5

    def norm(name, channels):
        parameters[f"{name}.weight"] = 1 + 0.2 * torch.randn(channels)
        parameters[f"{name}.bias"] = 0.2 * torch.randn(channels)
        parameters[f"{name}.running_mean"] = 0.2 * torch.randn(channels)
        parameters[f"{name}.running_var"] = 0.5 + torch.rand(channels)

    conv("conv", channels, width, 3)
    norm("bn", width)
    inputs = width
    for stage, factor in enumerate((1, 2, 4, 8), 1):
        outputs = factor * width
        for block in (1, 2):
            name = f"stage{stage}.block{block}"
            conv(f"{name}.conv1", inputs, outputs, 3)
            norm(f"{name}.bn1", outputs)
            conv(f"{name}.conv2", outputs, outputs, 3)
            norm(f"{name}.bn2", outputs)
            if inputs != outputs:
                conv(f"{name}.shortcut.conv", inputs, outputs, 1)
                norm(f"{name}.shortcut.bn", outputs)
            inputs = outputs
    parameters["fc.weight"] = torch.randn(inputs, classes) * 0.3
    parameters["fc.bias"] = torch.randn(classes) * 0.3
    return parameters


def resnet(p, x, training):
    def norm(x, name):
        running = p[f"{name}.running_mean"], p[f"{name}.running_var"]
        return F.batch_norm(x, *running, p[f"{name}.weight"], p[f"{name}.bias"], training, 0.1, 1e-5)

    x = F.relu(norm(F.conv2d(x, p["conv.weight"], padding=1), "bn"))
    for stage in range(1, 5):
        for block in (1, 2):
            name = f"stage{stage}.block{block}"
            stride = 2 if stage > 1 and block == 1 else 1
            inner = F.conv2d(x, p[f"{name}.conv1.weight"], stride=stride, padding=1)
            inner = F.conv2d(F.relu(norm(inner, f"{name}.bn1")), p[f"{name}.conv2.weight"], padding=1)
            if f"{name}.shortcut.conv.weight" in p:
                x = norm(F.conv2d(x, p[f"{name}.shortcut.conv.weight"], stride=stride), f"{name}.shortcut.bn")
            x = F.relu(norm(inner, f"{name}.bn2") + x)
    return x.mean((2, 3)) @ p["fc.weight"] + p["fc.bias"]


def record(tensors, model, parameters, forward, labels):
    for name, value in parameters.items():
        tensors[f"{model}.init.{name}"] = value.clone()
        value.requires_grad_(".running_" not in name)
    scores = forward(parameters)
    loss = F.cross_entropy(scores, labels)
    loss.backward()
    tensors[f"{model}.loss"] = loss
    tensors[f"{model}.right"] = (scores.argmax(1) == labels).sum()
    for name, value in parameters.items():
        tensors[f"{model}.grad.{name}"] = (value if value.grad is None else value.grad).clone()


def main(target):
    torch.set_num_threads(1)
    torch.manual_seed(11)
    tokens = torch.randint(VOCABULARY, (3 * CONTEXT + 1,))
    inputs, following = tokens[:-1].view(3, CONTEXT), tokens[1:].view(3, CONTEXT)
    tensors = {"gpt.tokens": inputs, "gpt.next": following}
    record(tensors, "gpt", gpt_parameters(), lambda p: gpt(p, inputs), following.flatten())

    samples, labels = torch.randn(4, 2, 16, 16), torch.tensor([0, 2, 1, 2])
    tensors |= {"resnet.samples": samples, "resnet.labels": labels}
    parameters = resnet_parameters(2, 2, 3)
    record(tensors, "resnet", parameters, lambda p: resnet(p, samples, True), labels)
    with torch.no_grad():
        tensors["resnet.evaluated"] = F.cross_entropy(resnet(parameters, samples, False), labels)
    write_safetensors(target, tensors)


main(sys.argv[1])
