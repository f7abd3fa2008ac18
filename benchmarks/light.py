"""Client networks and the teacher: parameters, and time and memory for one image.

Networks are timed in pairs on one thread, in bfloat16 if that is faster on the processor. Memory is measured in a
separate process, which builds the network and segments one image; the peak of a process that only imports is
subtracted.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from functools import partial

import torch
from common import Figure, record, side_by_side
from teacher_precision import checkpoint
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from samfed_monai.networks import CLIENT_NETWORKS, Teacher, build_sam, client_network
from samfed_monai.networks.fpn import FoldedConvNorm
from samfed_monai.networks.inferer import autocast

STUDENT = "mobile_sam_fpn"
NETWORKS = (
    ("mobile_sam_fpn", 224),
    ("lite0_fpn", 224),
    ("lite0_fpn_small", 224),
    ("deeplabv3plus_resnet18", 224),
    ("deeplabv3plus_resnet18", 128),
)
TEACHER_SIZE = 224
# not ru_maxrss, which includes the memory of the parent at the fork
_PEAK = "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"


def millions(network: nn.Module) -> float:
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


def segment(network: nn.Module, image: Tensor) -> None:
    with torch.no_grad(), autocast("cpu", "auto"):
        network(image)


def run_teacher(teacher: Teacher, image: Tensor) -> None:
    teacher.probabilities(image)


def megabytes(name: str, size: int) -> float:
    """Peak memory in MB of segmenting one image, less that of a process that only imports."""
    imports = "import torch; from samfed_monai.networks import client_network; torch.set_num_threads(1)"
    run = f"network = client_network({name!r}).eval(); torch.no_grad().__enter__(); "
    run += f"network(torch.rand(1, 3, {size}, {size}))"
    imported, ran = (
        int(
            subprocess.run(
                [sys.executable, "-c", f"{imports}; {part}; {_PEAK}"], check=True, capture_output=True
            ).stdout
        )
        for part in ("client_network", run)
    )
    return (ran - imported) / 1024


def channels_first(network: nn.Module) -> nn.Module:
    """Makes the network compute channels first, which is the memory format of images, instead of channels last."""
    network.encoder.conv_stem.register_forward_pre_hook(lambda _, given: (given[0].contiguous(),))
    return network


def train_step(network: nn.Module, images: Tensor, masks: Tensor) -> None:
    with autocast("cpu", "auto"):
        logits = network(images)
    binary_cross_entropy_with_logits(logits.float(), masks).backward()


def separate_norms(network: nn.Module) -> nn.Module:
    """Makes the network compute batch norms after their convolutions, as timm does."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, FoldedConvNorm):
                setattr(parent, name, nn.Sequential(child.conv, child.bn))
    return network


def design_choices(repeats: int) -> list[Figure]:
    """Times channels last, and norms folded into convolutions, against their alternatives; training and inference."""
    images, figures = torch.rand(8, 3, 224, 224), []
    masks = (torch.rand(8, 1, 224, 224) > 0.5).float()
    for name, alternative, choice in (
        ("lite0_fpn", channels_first, "channels last against channels first"),
        ("mobile_sam_fpn", separate_norms, "batch norms folded into convolutions against separate norms"),
    ):
        for what, action in (
            ("a training step of 8 images", partial(train_step, images=images, masks=masks)),
            ("inference on 8 images", partial(segment, image=images)),
        ):
            both = [client_network(name).train(action.func is train_step) for _ in range(2)]
            times = side_by_side(
                partial(action, alternative(both[0])),
                partial(action, both[1]),
                repeats=repeats,
                clock=time.process_time,
            )
            figures.append(Figure(f"{name}, 224 px, {what}: {choice}", times["ratio"], bound=1.0, details=times))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sam = build_sam("vit_t", checkpoint(), TEACHER_SIZE)
    image = torch.rand(1, 3, TEACHER_SIZE, TEACHER_SIZE, generator=torch.Generator().manual_seed(0))
    student = client_network(STUDENT).eval()
    figures = [Figure(f"teacher, {TEACHER_SIZE} px: parameters", millions(sam), unit="M")]
    figures += [
        Figure(f"{name}: parameters", millions(client_network(name)), unit="M")
        for name in CLIENT_NETWORKS
        if not name.startswith("sam_")
    ]
    for name, size in NETWORKS:
        network, own = client_network(name).eval(), torch.rand(1, 3, size, size)
        times = side_by_side(
            partial(segment, student, image),
            partial(segment, network, own),
            repeats=options.repeats,
            clock=time.process_time,
        )
        figures += [
            Figure(f"{name}, {size} px: memory for one image", megabytes(name, size), unit="MB"),
            Figure(f"{name}, {size} px: milliseconds per image", 1000 * times["second"], unit="ms"),
            Figure(f"{name}, {size} px: its time against {STUDENT}'s at 224 px", times["ratio"], details=times),
        ]
    for views in (1, 4):
        teacher = Teacher(sam, sha256="", size=TEACHER_SIZE, views=views)
        times = side_by_side(
            partial(segment, student, image),
            partial(run_teacher, teacher, image),
            repeats=options.repeats,
            clock=time.process_time,
        )
        what = f"teacher, {TEACHER_SIZE} px, {views} view{'s' if views > 1 else ''}: its time against {STUDENT}'s"
        figures += [Figure(f"{what.partition(':')[0]}: milliseconds per image", 1000 * times["second"], unit="ms")]
        figures += [Figure(what, times["ratio"], details=times)]
    record(__file__, [*figures, *design_choices(options.repeats)])


if __name__ == "__main__":
    main()
