from __future__ import annotations

import torch

from samfed_monai.networks.sam.build import fit_positions


def test_relative_tables_are_interpolated_linearly():
    state = {"blocks.2.attn.rel_pos_h": torch.tensor([[0.0], [1.0], [2.0], [3.0]])}
    fitted = fit_positions(state, {"blocks.2.attn.rel_pos_h": torch.zeros(2, 1)})
    # two outputs at the middles of two inputs each (align_corners=False)
    torch.testing.assert_close(fitted["blocks.2.attn.rel_pos_h"], torch.tensor([[0.5], [2.5]]))


def test_the_absolute_table_keeps_constants_and_symmetry():
    table = torch.full((1, 8, 8, 2), 3.0)
    fitted = fit_positions({"pos_embed": table}, {"pos_embed": torch.zeros(1, 4, 4, 2)})["pos_embed"]
    torch.testing.assert_close(fitted, torch.full((1, 4, 4, 2), 3.0))


def test_tables_that_fit_and_everything_else_pass_as_they_are():
    state = {"pos_embed": torch.rand(1, 4, 4, 2), "neck.0.weight": torch.rand(3, 2)}
    fitted = fit_positions(state, {"pos_embed": torch.zeros(1, 4, 4, 2), "neck.0.weight": torch.zeros(5, 2)})
    assert all(fitted[name] is tensor for name, tensor in state.items())
