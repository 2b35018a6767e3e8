"""Fixed BatchNorm as scale and shift, dropout before the ReLU and of a part: the same numbers, less memory."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from network.dropout import Dropout, Dropout2d, set_part
from network.fixed_norm import BatchNorm2d
from network.resnet38_contrast import Net
from tool.part import Part


def norm(channels=5):
    """A BatchNorm2d with statistics and parameters of its own, not trained."""
    torch.manual_seed(0)
    module = BatchNorm2d(channels).requires_grad_(False)
    for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
        tensor.uniform_(0.5, 2.)
    return module


def kept_for_backward(function, *inputs):
    """The numbers of values that autograd keeps of function(*inputs)."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        result = function(*inputs)
    return sizes, result


def test_a_fixed_norm_gives_the_same_numbers_and_keeps_no_map():
    module, x = norm(), torch.randn(2, 5, 6, 7, requires_grad=True)
    module.fix(False)
    sizes, expected = kept_for_backward(module, x)
    assert x.numel() in sizes
    gradient, = torch.autograd.grad(expected.square().sum(), x)
    module.fix(True)
    sizes, result = kept_for_backward(module, x)
    assert max(sizes) == 5
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(result.square().sum(), x)[0], gradient, rtol=1e-6, atol=1e-5)


def test_statistics_that_are_loaded_later_count_and_are_all_that_is_saved():
    module, other = norm(), norm()
    module.fix(True)
    other.running_mean += 1
    module.load_state_dict(other.state_dict())
    assert set(module.state_dict()) == set(nn.BatchNorm2d(5).state_dict())
    x = torch.randn(2, 5, 3, 3)
    torch.testing.assert_close(module(x), other.eval()(x))


def test_a_network_is_fixed_while_it_trains_and_as_published_when_it_infers():
    net = Net(3, 1 / 16)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.scale is not None and not m.training for m in norms if net.train())
    assert all(m.scale is None and not m.training for m in norms if net.eval())


def test_a_training_networks_views_are_those_of_the_published_norms(monkeypatch):
    torch.manual_seed(0)
    net, image = Net(3, 1 / 16).train(), torch.randn(2, 3, 48, 40)
    for module in net.modules():
        if isinstance(module, BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.fix(True)
    views = []
    for forward in (BatchNorm2d.forward, lambda self, x: F.batch_norm(x, self.running_mean, self.running_var,
                                                                       self.weight, self.bias, eps=self.eps)):
        monkeypatch.setattr(BatchNorm2d, 'forward', forward)
        torch.manual_seed(1)
        views.append(net.view(image))
    for ours, published in zip(*(view[:3] for view in views)):
        torch.testing.assert_close(ours, published, rtol=1e-5, atol=1e-6 * published.abs().max().item())
        assert ours.abs().max() > 0


def test_dropout_before_the_relu_drops_the_same():
    x = torch.randn(4, 6, 3, 3)
    torch.manual_seed(0)
    before = F.relu(F.dropout2d(x, 0.5))
    torch.manual_seed(0)
    assert torch.equal(before, F.dropout2d(F.relu(x), 0.5))


@pytest.mark.parametrize('dropout', [Dropout(0.3), Dropout2d(0.3)])
def test_parts_drop_what_the_whole_batch_drops(dropout):
    x = torch.randn(8, 5, 3, 4)
    torch.manual_seed(0)
    whole, after = dropout(x), torch.get_rng_state()
    assert (whole == 0).any() and (whole != 0).any()
    parts = []
    for index in range(4):
        torch.manual_seed(0)
        set_part(nn.Sequential(dropout), Part(index, 4))
        parts.append(dropout(Part(index, 4).of(x)))
        assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(dropout.eval()(x), x)


def test_parts_follow_one_another_and_are_all_of_a_batch():
    assert [Part(index, 3).of(list('abcdef')) for index in range(3)] == [['a', 'b'], ['c', 'd'], ['e', 'f']]
