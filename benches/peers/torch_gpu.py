#!/usr/bin/env python3
"""PyTorch's time for a training step of GPT-2 and ResNet-18, to set beside Muster's.

The same models as Muster's families `gpt` and `resnet`, on synthetic data that is on the device from
the start, with AdamW: forward, backward, clipping by the global norm, update. Prints one JSON line a
configuration. Needs torch alone.

    torch_gpu.py --model gpt2 --batch 16 --precision bf16 --mode compile
    torch_gpu.py --model resnet18 --batch 512 --precision f32 --mode eager
    torchrun --nproc-per-node 8 torch_gpu.py --model gpt2 --batch 16       (DDP; the batch is a rank's)
    torch_gpu.py --device cpu --model gpt2 --layers 2 --heads 2 --width 64 --context 64 \\
        --vocabulary 256 --batch 2 --steps 3

bf16 is autocast with f32 parameters; f32 is without TF32 unless --tf32 is given. --all runs eager and
compiled in both precisions. step_ms is the median of the steps behind --warmup, with the device
waited for at the end of each; samples are windows or images, and throughput counts all ranks.
"""
import argparse
import contextlib
import json
import os
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.mlp_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        samples, context, width = x.shape
        parts = self.c_attn(self.ln_1(x)).split(width, dim=2)
        split = lambda part: part.view(samples, context, self.heads, width // self.heads).transpose(1, 2)
        attended = F.scaled_dot_product_attention(*map(split, parts), is_causal=True)
        x = x + self.c_proj(attended.transpose(1, 2).reshape(samples, context, width))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class Gpt(nn.Module):
    def __init__(self, options):
        super().__init__()
        self.wte = nn.Embedding(options.vocabulary, options.width)
        self.wpe = nn.Embedding(options.context, options.width)
        self.blocks = nn.ModuleList(Block(options.width, options.heads) for _ in range(options.layers))
        self.ln_f = nn.LayerNorm(options.width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = (2 * options.layers) ** -0.5 if name.endswith("proj.weight") else 1
                nn.init.normal_(parameter, std=0.02 * residual)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens, following):
        x = self.wte(tokens) + self.wpe.weight
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), following.flatten())


def conv(inputs, outputs, size, stride=1):
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first, self.second = conv(inputs, outputs, 3, stride), conv(outputs, outputs, 3)
        is_same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if is_same else conv(inputs, outputs, 1, stride)

    def forward(self, x):
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class Resnet(nn.Module):
    def __init__(self, width):
        super().__init__()
        layers, inputs = [conv(3, width, 3), nn.ReLU()], width
        for factor in (1, 2, 4, 8):
            outputs = factor * width
            layers += [Residual(inputs, outputs, 1 if factor == 1 else 2), Residual(outputs, outputs, 1)]
            inputs = outputs
        self.layers, self.fc = nn.Sequential(*layers), nn.Linear(inputs, 10)

    def forward(self, images, labels):
        scores = self.fc(self.layers(images).mean((2, 3)))
        return F.cross_entropy(scores.float(), labels)


def build(options, device):
    """The model, its samples, and how many tokens or images a sample is."""
    torch.manual_seed(options.rank)
    if options.model == "gpt2":
        tokens = torch.randint(options.vocabulary, (options.batch, options.context + 1), device=device)
        data = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        return Gpt(options).to(device), data, options.context
    images = torch.randn(options.batch, 3, 32, 32, device=device)
    labels = torch.randint(10, (options.batch,), device=device)
    return Resnet(options.resnet_width).to(device), (images, labels), 1


def measure(options, device, mode, precision):
    is_cuda = device.type == "cuda"
    model, data, per_sample = build(options, device)
    if options.channels_last and options.model == "resnet18":
        model = model.to(memory_format=torch.channels_last)
        data = data[0].to(memory_format=torch.channels_last), data[1]
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=is_cuda)
    step_model = model
    if options.world > 1:
        ids = [device.index] if is_cuda else None
        step_model = nn.parallel.DistributedDataParallel(model, device_ids=ids)
    if mode == "compile":
        step_model = torch.compile(step_model)
    autocast = contextlib.nullcontext()
    if precision == "bf16":
        autocast = torch.autocast(device.type, torch.bfloat16)
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(device)
    times, losses = [], []
    for _ in range(options.warmup + options.steps):
        begun = time.perf_counter()
        with autocast:
            loss = step_model(*data)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if is_cuda:
            torch.cuda.synchronize(device)
        times.append((time.perf_counter() - begun) * 1e3)
        losses.append(loss.detach())
    step_ms = statistics.median(times[options.warmup:])
    unit = "tokens_per_s" if options.model == "gpt2" else "images_per_s"
    return {
        "model": options.model,
        "parameters": num_parameters,
        "mode": mode,
        "precision": precision,
        "ranks": options.world,
        "batch": options.batch,
        "steps": options.steps,
        "step_ms": round(step_ms, 3),
        "fastest_ms": round(min(times[options.warmup:]), 3),
        unit: round(options.batch * per_sample * options.world / step_ms * 1e3, 1),
        "peak_memory_mib": round(torch.cuda.max_memory_allocated(device) / 2**20) if is_cuda else None,
        "first_loss": round(losses[0].item(), 4),
        "last_loss": round(losses[-1].item(), 4),
        "device": torch.cuda.get_device_name(device) if is_cuda else "cpu",
        "torch": torch.__version__,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["gpt2", "resnet18"], default="gpt2")
    parser.add_argument("--mode", choices=["eager", "compile"], default="eager")
    parser.add_argument("--precision", choices=["bf16", "f32"], default="bf16")
    parser.add_argument("--all", action="store_true", help="both modes in both precisions")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--batch", type=int, default=8, help="windows or images of a step and rank")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--channels-last", action="store_true", help="ResNet's images and kernels")
    sizes = {"layers": 12, "heads": 12, "width": 768, "context": 1024, "vocabulary": 50304, "resnet-width": 64}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    options.rank, options.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cpu")
    if options.device == "cuda":
        if not torch.cuda.is_available():
            parser.error("there is no CUDA device here; add --device cpu and small sizes")
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_tf32 = options.tf32
    torch.backends.cudnn.allow_tf32 = options.tf32
    if options.world > 1:
        torch.distributed.init_process_group("nccl" if options.device == "cuda" else "gloo")
    both = [(mode, precision) for precision in ("bf16", "f32") for mode in ("eager", "compile")]
    for mode, precision in both if options.all else [(options.mode, options.precision)]:
        line = measure(options, device, mode, precision)
        if options.rank == 0:
            print(json.dumps(line), flush=True)
        if options.device == "cuda":
            torch.cuda.empty_cache()
    if options.world > 1:
        torch.distributed.destroy_process_group()


main()
