"""Patch embeddings as matrix products."""

import copy

import pytest
import torch
from torch import nn

from mmrl_core.language_model.towers import PatchProjection, project_patches


@pytest.mark.parametrize("bias", [False, True])
def test_a_patch_embedding_gives_what_its_convolution_gives(bias):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv3d(3, 8, (2, 4, 4), stride=(2, 4, 4), bias=bias)).double()
    product = copy.deepcopy(plain)
    project_patches(product)
    assert type(product[0]) is PatchProjection and type(plain[0]) is nn.Conv3d
    patches = torch.randn(5, 3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    outputs, gradients = [], []
    for model in (plain, product):
        outputs.append(model(patches))
        gradients.append(torch.autograd.grad(outputs[-1].square().sum(), [patches, *model.parameters()]))
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(gradients[1], gradients[0])
    assert product.state_dict().keys() == plain.state_dict().keys()


def test_larger_inputs_are_convolved_as_before():
    plain = nn.Sequential(nn.Conv3d(3, 8, (2, 4, 4), stride=(1, 2, 2)))
    product = copy.deepcopy(plain)
    project_patches(product)
    video = torch.randn(1, 3, 4, 8, 8)
    assert torch.equal(product(video), plain(video))


@pytest.mark.parametrize("settings", [{"padding": 1}, {"groups": 2}, {"dilation": 2}])
def test_other_convolutions_are_left_alone(settings):
    model = nn.Sequential(nn.Conv3d(4, 8, 2, **settings))
    project_patches(model)
    assert type(model[0]) is nn.Conv3d
