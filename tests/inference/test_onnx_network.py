"""ONNX files as networks: the same logits, and refusals of what is no such file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from samfed_monai.core.errors import Refused
from samfed_monai.inference.export import OnnxNetwork

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install samfed-monai[export]")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install samfed-monai[export]")


def doubling(path: Path, given: list[object], made: list[object], *, kind: int = onnx.TensorProto.FLOAT) -> Path:
    """A file whose only channel of logits is twice the first of the images."""
    from onnx import TensorProto, helper

    starts, ends, axes = ([number] for number in (0, 1, 1))
    constants = [
        helper.make_tensor(name, TensorProto.INT64, [1], values)
        for name, values in (("starts", starts), ("ends", ends), ("axes", axes))
    ]
    nodes = [
        helper.make_node("Slice", ["image", "starts", "ends", "axes"], ["first"]),
        helper.make_node("Add", ["first", "first"], ["logits"]),
    ]
    values = [helper.make_tensor_value_info(name, kind, shape) for name, shape in (("image", given), ("logits", made))]
    graph = helper.make_graph(nodes, "doubling", values[:1], values[1:], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_logits_are_those_of_the_file_for_any_batch(tmp_path):
    network = OnnxNetwork(doubling(tmp_path / "a.onnx", ["batch", 3, 4, 6], ["batch", 1, 4, 6]))
    assert isinstance(network, nn.Module)
    assert network.size == (4, 6)
    for number in (1, 3):
        images = torch.rand(number, 3, 4, 6)
        assert torch.equal(network(images), 2 * images[:, :1])


def test_openvino_gives_each_image_its_own_logits(tmp_path):
    pytest.importorskip("openvino", reason="openvino is not installed: pip install samfed-monai[openvino]")
    network = OnnxNetwork(doubling(tmp_path / "a.onnx", ["batch", 3, 4, 6], ["batch", 1, 4, 6]), "openvino")
    assert network.size == (4, 6)
    images = torch.arange(3.0)[:, None, None, None].expand(3, 3, 4, 6) / 4
    assert torch.equal(network(images), 2 * images[:, :1])


def test_an_unknown_runtime_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="runtime: expected one of onnxruntime, openvino, found 'tensorrt'"):
        OnnxNetwork(tmp_path / "a.onnx", "tensorrt")


@pytest.mark.parametrize(
    ("given", "made", "kind", "told"),
    [
        (["b", 1, 4, 4], ["b", 1, 4, 4], onnx.TensorProto.FLOAT, r"found tensor\(float\) \('b', 1, 4, 4\) -> "),
        (["b", 3, "h", "w"], ["b", 1, "h", "w"], onnx.TensorProto.FLOAT, r"\('b', 3, 'h', 'w'\)"),
        (["b", 3, 4], ["b", 1, 4], onnx.TensorProto.FLOAT, r"found tensor\(float\) \('b', 3, 4\)"),
        (["b", 3, 4, 4], ["b", 1, 4, 4], onnx.TensorProto.DOUBLE, r"found tensor\(double\)"),
    ],
)
def test_a_network_of_another_kind_is_refused(tmp_path, given, made, kind, told):
    path = doubling(tmp_path / "a.onnx", given, made, kind=kind)
    with pytest.raises(Refused, match=rf"a\.onnx: expected float32 \(B, 3, H, W\) -> \(B, 1, H, W\), .*{told}"):
        OnnxNetwork(path)


def test_what_is_no_onnx_file_is_refused(tmp_path):
    (tmp_path / "a.onnx").write_text("no network")
    for name in ("a.onnx", "missing.onnx"):
        with pytest.raises(Refused, match=rf"{name}: expected an ONNX file, found "):
            OnnxNetwork(tmp_path / name)


def test_the_package_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("samfed_monai.inference.export.importlib.util.find_spec", lambda name: None)
    with pytest.raises(Refused, match=r"found an ONNX file; pip install 'samfed-monai\[export\]'"):
        OnnxNetwork(tmp_path / "a.onnx")
    found = {"onnxruntime": object()}
    monkeypatch.setattr("samfed_monai.inference.export.importlib.util.find_spec", found.get)
    with pytest.raises(Refused, match=r"expected openvino to run it with, .*'samfed-monai\[openvino\]'"):
        OnnxNetwork(tmp_path / "a.onnx", "openvino")
