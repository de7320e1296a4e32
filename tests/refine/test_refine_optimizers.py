"""Muon of both networks: which parameters it moves, convolutions as matrices, and its state in a checkpoint."""

from dataclasses import replace

import torch
from torch import nn

from ditscope.refine.loop import LoopSettings, Muon, load_optimizers, optimizer_tensors, optimizers
from ditscope.refine.networks import LatentMAE, LatentMAEConfig
from ditscope.refine.refiner import Refiner, RefinerConfig

SETTINGS = LoopSettings(steps=4, batch=2, lr=0.01, muon=True)


def named(network: nn.Module) -> dict[str, nn.Parameter]:
    return dict(network.named_parameters())


def by_muon(network: nn.Module) -> set[str]:
    """Names of the parameters that the second optimizer moves."""
    parameters = named(network)
    chosen = {id(p) for p in optimizers(parameters, SETTINGS)[1].whole}
    return {name for name, p in parameters.items() if id(p) in chosen}


def test_the_matrices_inside_both_networks_are_muons():
    mae = LatentMAE(LatentMAEConfig(4, 2, 2, 8, 2))
    names = by_muon(mae)
    assert names == {n for n, p in named(mae).items() if p.ndim == 4 and ".convs." in n}
    assert {"encoder.0.0.convs.0.weight", "decoder.0.convs.1.weight"} <= names
    assert not any(name.startswith(("down.0", "head")) for name in names)
    refiner = Refiner(RefinerConfig(4, 2, 2, 32, 2, 2, 4, 8))
    names = by_muon(refiner)
    assert names
    assert all("blocks." in name and named(refiner)[name].ndim == 2 for name in names)
    assert len(optimizers(named(mae), replace(SETTINGS, muon=False))) == 1


def test_a_convolution_moves_as_the_matrix_of_its_outputs():
    torch.manual_seed(0)
    kernel = nn.Parameter(torch.randn(6, 4, 3, 3))
    matrix = nn.Parameter(kernel.detach().clone().view(6, 36))
    settings = {"lr": 0.1, "weight_decay": 0.01, "adjust_lr_fn": "match_rms_adamw"}
    mine, plain = Muon([kernel], **settings), torch.optim.Muon([matrix], **settings)
    for _ in range(3):
        gradient = torch.randn(6, 4, 3, 3)
        mine.zero_grad()
        kernel.grad, matrix.grad = gradient.clone(), gradient.clone().view(6, 36)
        mine.step()
        plain.step()
    torch.testing.assert_close(kernel.view(6, 36), matrix)
    mine.zero_grad()
    assert kernel.grad is None


def test_a_checkpoint_holds_the_momentum_of_both_optimizers():
    torch.manual_seed(0)
    networks = [LatentMAE(LatentMAEConfig(4, 2, 2, 8, 2)) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    groups = [optimizers(named(network), SETTINGS) for network in networks]

    def move(which: int) -> None:
        torch.manual_seed(1)
        for p in networks[which].parameters():
            p.grad = torch.randn_like(p)
        for optimizer in groups[which]:
            optimizer.step()

    move(0)
    networks[1].load_state_dict(networks[0].state_dict())
    load_optimizers(groups[1], {k: v.clone() for k, v in optimizer_tensors(groups[0]).items()})
    move(0)
    move(1)
    for mine, again in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(mine, again)
