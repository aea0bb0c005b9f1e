"The feature loss: loss networks of any kind, the fast loss against a plain one, bad settings"
import gc, json, weakref
import pytest, torch, torch.nn.functional as F
from torch import nn
from course_lib.cli import find_notebook, run_cells
from course_lib.core import CourseError, lesson_settings
from course_lib.feature_loss import (FeatureLoss, LossNetwork, fold_norms, gram_matrix, make_loss, make_loss_network, part_metrics)
from course_lib.models import torchvision_encoder
from course_lib.unet import Hooks, before_it_shrinks, layer_shapes


def lively(arch):
    "A network with norms that do something"
    torch.manual_seed(0)
    net = torchvision_encoder(arch).eval().requires_grad_(False)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, .2); m.running_var.uniform_(.5, 2); m.weight.uniform_(.5, 1.5); m.bias.normal_(0, .2)
    return net


def kept(net, ids, x):
    "What the whole network's layers give out, copied at that moment"
    res = {}
    hooks = [net[i].register_forward_hook(lambda m, inp, out, i=i: res.update({i: out.clone()})) for i in ids]
    net(x)
    for h in hooks: h.remove()
    return [res[i] for i in ids]


@pytest.mark.parametrize('arch, places', [('vgg16_bn', [5,12,22,32,42]), ('vgg11_bn', None), ('vgg11', None), ('resnet18', None), ('mobilenet_v2', None),
    ('squeezenet1_1', None), ('densenet121', None)])
def test_any_loss_network(arch, places):
    "Cut and folded, every network sees what it saw as a whole, and is left alone itself"
    net, x = lively(arch), torch.randn(2,3,64,64)
    ids = before_it_shrinks(layer_shapes(net))
    if places: assert ids == places
    want, norms = kept(net, ids[:3], x), sum(isinstance(o, nn.BatchNorm2d) for o in net.modules())
    seer = LossNetwork(net, ids[:3])
    for a,b in zip(want, seer(x)): torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4*a.abs().max().item())
    assert sum(isinstance(o, nn.BatchNorm2d) for o in net.modules()) == norms
    assert len(seer.net) == max(ids[:3])+1 < len(net) and not any(p.requires_grad for p in seer.parameters())


def test_it_stays_frozen():
    seer = LossNetwork(lively('vgg11_bn'), [2, 6])
    assert not seer.train().training and not any(o.training for o in seer.modules())


def test_nothing_is_kept():
    "After a pass the loss network holds no activations, and when it goes its hooks go too"
    net = lively('vgg11_bn')
    seer = LossNetwork(net, [2, 6])
    out = weakref.ref(seer(torch.randn(1,3,32,32))[0])
    gc.collect()
    assert out() is None
    layer = seer.net[2]
    assert len(layer._forward_hooks) == 1
    del seer
    gc.collect()
    assert not layer._forward_hooks


def test_fold_norms_of_pairs_only():
    "A norm that follows something else than a convolution stays"
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval()
    assert [type(o).__name__ for o in fold_norms(net)] == ['Conv2d', 'ReLU', 'BatchNorm2d', 'Conv2d', 'Identity']


def plain(net, ids, wgts, pred, targ, gram):
    with Hooks(net[i] for i in ids) as hooks:
        net(targ); b = [h.stored.clone() for h in hooks]
        net(pred); a = [h.stored for h in hooks]
        g = lambda x: torch.einsum('nchw,ndhw->ncd', x, x)/x[0].numel()
        return F.l1_loss(pred, targ) + sum(w*F.l1_loss(p, q) + w*w*gram*F.l1_loss(g(p), g(q)) for w,p,q in zip(wgts, a, b))


@pytest.mark.parametrize('arch', ['vgg11_bn', 'vgg16_bn'])
def test_fast_is_plain(arch):
    "The value to 1e-4, the slope to 1e-4 in 64 bits"
    net = lively(arch)
    ids, net = before_it_shrinks(layer_shapes(net))[1:4], net.double()
    x, y = torch.randn(2,2,3,48,48).double()
    loss, slopes, values = FeatureLoss(LossNetwork(net, ids)), [], []
    for f in (loss, lambda a, b: plain(net, ids, (5,15,2), a, b, 5e3)):
        p = x.clone().requires_grad_()
        values.append(f(p, y))
        slopes.append(torch.autograd.grad(values[-1], p)[0])
    assert abs(values[0]/values[1]-1) < 1e-6 and (slopes[0]-slopes[1]).norm() < 1e-4*slopes[1].norm()


def test_zero_for_equals_and_no_graph_for_the_target():
    seer, y = LossNetwork(lively('vgg11_bn'), [2, 6]), torch.randn(1,3,32,32)
    loss = FeatureLoss(seer, (1,1))
    assert loss(y, y).item() == 0
    t = y.clone().requires_grad_()
    loss(torch.randn(1,3,32,32, requires_grad=True), t).backward()
    assert t.grad.norm() <= 1/t.numel()**.5 # of the pixels' part alone


def test_parts_add_up():
    loss = FeatureLoss(LossNetwork(lively('vgg11_bn'), [2, 6]), (2, 3), gram=100, pixel=.5, base='mse')
    x, y = torch.randn(2,1,3,32,32)
    total = loss(x, y)
    assert [f.__name__ for f in part_metrics(loss)] == ['pixel', 'feat_0', 'feat_1', 'gram_0', 'gram_1'] == loss.names
    torch.testing.assert_close(sum(f(x, y) for f in part_metrics(loss)), total)
    torch.testing.assert_close(loss.parts['pixel'], .5*F.mse_loss(x, y))
    assert not any(o.requires_grad for o in loss.parts.values())


@pytest.mark.parametrize('low,outer', [(torch.bfloat16, None), (torch.float16, None), (None, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16)])
def test_sixteen_bits(low, outer):
    "The loss network in 16 bits, or all under autocast, as in a fit in mixed precision: nearly the same, and in nearly the same direction"
    seer, (x, y) = LossNetwork(lively('vgg11_bn'), [2, 6]), torch.randn(2,2,3,32,32)
    def value_and_slope(low, outer):
        p = x.clone().requires_grad_()
        with torch.autocast('cpu', outer, enabled=outer is not None): value = FeatureLoss(seer, (1,1), low=low)(p, y)
        return value, torch.autograd.grad(value, p)[0].flatten()
    (v, slope), (exact, wanted) = value_and_slope(low, outer), value_and_slope(None, None)
    assert abs(v/exact-1) < .03 and F.cosine_similarity(slope, wanted, dim=0) > .98 and .95 < slope.norm()/wanted.norm() < 1.05


def test_small_gradients_survive_float16():
    "A loss over many activations: without a scaler most of its gradients would be zero"
    seer, (x, y) = LossNetwork(lively('vgg11_bn'), [2]), torch.randn(2,1,3,256,256)
    p = x.clone().requires_grad_()
    FeatureLoss(seer, (.01,), gram=0, pixel=0, low=torch.float16)(p, y).backward()
    exact = x.clone().requires_grad_()
    FeatureLoss(seer, (.01,), gram=0, pixel=0)(exact, y).backward()
    assert F.cosine_similarity(p.grad.flatten(), exact.grad.flatten(), dim=0) > .99


def test_gram_in_sixteen_bits():
    "Strong activations in many places: their sum has no room in float16"
    x = torch.full((1,4,256,256), 30.)
    with torch.autocast('cpu', torch.float16): g = gram_matrix(x)
    torch.testing.assert_close(g.float(), gram_matrix(x), rtol=.01, atol=0)


def test_gram_is_blind_to_places():
    x = torch.randn(2,6,5,7)
    y = x.flatten(2)[..., torch.randperm(35)].reshape(x.shape)
    torch.testing.assert_close(gram_matrix(x), gram_matrix(y))
    torch.testing.assert_close(gram_matrix(x), gram_matrix(x.contiguous(memory_format=torch.channels_last)))
    assert not torch.allclose(gram_matrix(x), gram_matrix(torch.randn(2,6,5,7)))


@pytest.mark.parametrize('layers', ['5', '', '0 9'])
def test_layers_that_are_not_there(layers):
    cfg = lesson_settings('05', 'sample', judge_layers=layers)
    with pytest.raises(CourseError, match='course shrinks 3 times. Expected numbers from 0 to 2'): make_loss_network(cfg, torch.randn(1,3,64,64))


def test_pretrained_is_insisted_on(monkeypatch, tmp_path):
    "Without weights: `yes` fails, `no` does not look"
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr('course_lib.models.download_url', lambda *a, **k: (_ for _ in ()).throw(OSError('no network')))
    x, cfg = torch.randn(2,3,64,64), lesson_settings('05', 'sample', judge='vgg11_bn')
    assert make_loss(cfg, x)[1] is False
    cfg.pretrained = 'yes'
    with pytest.raises(CourseError, match='no ImageNet weights'): make_loss(cfg, x)


def test_the_course_has_a_loss_network_of_its_own(capsys):
    "Trained, without a look for weights; in another's place, where that one's cannot be had, it says so"
    x = torch.randn(2,3,64,64)
    loss, trained = make_loss(lesson_settings('05', 'sample'), x)
    assert trained and loss(x, x) == 0 and [o.shape[1:] for o in loss.net(x)] == [(64,64,64), (128,32,32)] and not capsys.readouterr().out


def test_experiments_are_those_that_are_kept(monkeypatch, capsys):
    "Every experiment of the notebook has settings that exist; their names are the kept answers'"
    monkeypatch.setenv('COURSE_ANSWERS', json.dumps(dict(profile='full', n=0, only_list=True)))
    path = find_notebook('answers/05_feature_loss_superres')
    run_cells(path)
    kept = json.loads((path.parents[2]/'results'/'answers'/'05.json').read_text())
    assert [o.removesuffix('  (kept)') for o in capsys.readouterr().out.splitlines()] == list(kept)
