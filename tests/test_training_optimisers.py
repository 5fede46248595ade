"""MuonAdamW against torch's own optimisers, in both memory layouts."""

import copy

import pytest
import torch
from torch import nn

from training.optimisers import MuonAdamW


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(3, 8, 3)
        self.middle = nn.Conv2d(8, 6, 3)
        self.norm = nn.GroupNorm(2, 6)
        self.linear = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.norm(self.middle(self.conv_in(x))).mean((2, 3)))


def network() -> Network:
    torch.manual_seed(0)
    return Network()


def steps(net: nn.Module, optimizer, count: int = 3) -> None:
    for k in range(count):
        optimizer.zero_grad()
        x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(k))
        net(x).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_kernels_move_as_muon_moves_their_matrices_and_the_rest_as_adamw(layout):
    net = network().to(memory_format=layout)
    twin = copy.deepcopy(net)
    steps(net, MuonAdamW(net, lr=0.01), 1)

    twin(torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    for name, p in twin.named_parameters():
        if name in ("middle.weight", "linear.weight"):
            alone = nn.Parameter(p.detach().flatten(1).contiguous())
            alone.grad = p.grad.flatten(1).contiguous()
            torch.optim.Muon([alone], lr=0.01, weight_decay=0.01, adjust_lr_fn="match_rms_adamw").step()
        else:
            alone = nn.Parameter(p.detach().clone())
            alone.grad = p.grad
            torch.optim.AdamW([alone], lr=0.01, betas=(0.9, 0.98), weight_decay=0.01).step()
        # Newton and Schulz iterate in bfloat16; a permutation of columns changes its rounding.
        torch.testing.assert_close(dict(net.named_parameters())[name], alone.view_as(p), atol=2e-4, rtol=0)


def test_a_stored_state_goes_on_as_if_never_interrupted(tmp_path):
    whole, half = network(), network()
    steps(whole, MuonAdamW(whole, lr=0.01), 3)
    optimizer = MuonAdamW(half, lr=0.01)
    steps(half, optimizer, 1)
    torch.save((half.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")

    resumed = network()
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(weights)
    optimizer = MuonAdamW(resumed, lr=0.01)
    optimizer.load_state_dict(state)
    for k in (1, 2):
        optimizer.zero_grad()
        x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(k))
        resumed(x).square().sum().backward()
        optimizer.step()
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_kernels_without_a_view_as_a_matrix_are_refused():
    net = network()
    net.middle.weight.data = net.middle.weight.data.transpose(2, 3)[:, :, :, :2]
    with pytest.raises(ValueError, match="no view as a matrix"):
        MuonAdamW(net, lr=0.01)
