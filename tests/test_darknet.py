"What lesson 10's module promises: layers, schedule, loader, and one model trained in several processes"
import math, os, subprocess, sys
import pytest, torch, torch.nn.functional as F
from fastai.vision.all import TensorImage
from torch import nn
from conftest import patience
from course_lib import darknet, models
from course_lib.core import CourseError, lesson_settings
from course_lib.darknet import (Branches, CropAndMirror, Darknet, ResLayer, channel_stats, cifar_dls, cifar_learner, dark_conv,
    darknet_of, far_stem, fit_darknet, triangle_cycle)
from course_lib.tensors import random_crop
from course_lib.resnet import n_params
from course_lib.samples.things import make_things

LECTURE = 31_410_922 # parameters of Darknet([1, 2, 4, 6, 3], nf=32)
small_run = dict(bs=16, nf=4, groups='1 1', epochs=1, epochs_answers=1)


def cfg(**changed): return lesson_settings('10', 'sample', **{**small_run, **changed})


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    p = tmp_path_factory.mktemp('things')
    make_things(p, n_train=10, n_valid=6)
    return p


@pytest.fixture
def small_data(path, monkeypatch): monkeypatch.setattr(darknet, 'get_data', lambda *args: path)


# the network

def test_parameters():
    "Counted by hand: a convolution has ni·nf·k² weights, a norm 2·nf, the last layer nf·10 + 10"
    layer = lambda ni, nf, k: ni*nf*k*k + 2*nf
    total, nf = layer(3, 32, 3), 32
    for n in (1, 2, 4, 6, 3):
        total += layer(nf, 2*nf, 3) + n*(layer(2*nf, nf, 1) + layer(nf, 2*nf, 3))
        nf *= 2
    assert total + nf*10 + 10 == LECTURE == n_params(Darknet([1, 2, 4, 6, 3], nf=32)) == n_params(darknet_of(lesson_settings('10', 'full')))


@pytest.mark.parametrize('size', [1, 5, 28, 31, 32, 64])
def test_any_size(size): assert Darknet([1, 1, 1], nf=4).eval()(torch.rand(2, 3, size, size)).shape == (2, 10)


def test_only_the_second_group_keeps_the_grid():
    net, sizes = Darknet([0]*5, nf=2).eval(), []
    h = torch.rand(1, 3, 32, 32)
    for o in net.layers[:6]: h = o(h); sizes.append(h.shape[-1])
    assert sizes == [32, 16, 16, 8, 4, 2]


def test_layer():
    "Slope, momentum and no bias, as the settings of the lecture; switches reach every layer"
    conv, bn, act = dark_conv(3, 4)
    assert conv.bias is None and bn.momentum == .01 and act.negative_slope == .1 and act.inplace
    net = Darknet([1, 2], nf=4, mom=.3, leak=0.)
    assert {o.momentum for o in net.modules() if isinstance(o, nn.BatchNorm2d)} == {.3}
    assert {o.negative_slope for o in net.modules() if isinstance(o, nn.LeakyReLU)} == {0.}
    assert len([o for o in net.modules() if isinstance(o, nn.BatchNorm2d)]) == 1 + 2 + 2*3


@pytest.mark.parametrize('wide,n_conv,nh', [(.5,2,8), (1,2,16), (2,2,32), (.5,3,8)])
def test_block(wide, n_conv, nh):
    block = ResLayer(16, wide, n_conv)
    assert block.convs[0][0].out_channels == nh and len(block.convs) == n_conv
    x = torch.rand(2, 16, 6, 6)
    before = x.clone()
    y = block(x)
    assert torch.equal(x, before), 'the input is as it was'
    assert torch.allclose(y - x, block.convs(x), atol=1e-5)
    y.sum().backward()


@pytest.mark.parametrize('block', [Branches(8), ResLayer(8)])
def test_blocks_keep_shape(block): assert block(torch.rand(2, 8, 5, 7)).shape == (2, 8, 5, 7)


def test_stem_is_used():
    net = Darknet([1], nf=8, stem=far_stem)
    assert [o[0].kernel_size for o in net.layers[0]] == [(1,7), (7,1)]


# the data

def test_stats_by_hand():
    x = torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8)
    mean, std = channel_stats(x)
    for c in range(3):
        flat = [v/255 for v in x[:,c].flatten().tolist()]
        m = sum(flat)/len(flat)
        assert mean[c].item() == pytest.approx(m, abs=1e-5)
        assert std[c].item() == pytest.approx(math.sqrt(sum((v-m)**2 for v in flat)/(len(flat)-1)), abs=1e-5)
    with pytest.raises(CourseError, match='shape'): channel_stats(x[0])


def shifted(x, pad, mode='reflect'): return CropAndMirror(pad, mode)(TensorImage(x), split_idx=0).as_subclass(torch.Tensor)


@pytest.mark.parametrize('dtype', [torch.uint8, torch.float32])
@pytest.mark.parametrize('mode,padding', [('reflect', 'reflect'), ('zeros', 'constant')])
def test_every_crop_is_one_of_the_padded_picture(dtype, mode, padding):
    x = torch.randint(0, 256, (40, 3, 6, 9), generator=torch.Generator().manual_seed(0)).to(dtype)
    pad = F.pad(x.float(), (3,)*4, mode=padding)
    for k,o in enumerate(shifted(x, 3, mode)):
        windows = [pad[k, :, i:i+6, j:j+9] for i in range(7) for j in range(7)]
        assert any(torch.equal(o.float(), w) or torch.equal(o.float(), w.flip(2)) for w in windows)
    assert shifted(x, 3, mode).dtype == dtype and shifted(x, 0, mode).shape == x.shape


def test_crops_differ_from_picture_to_picture():
    x = torch.rand(1, 3, 8, 8).repeat(64, 1, 1, 1)
    assert len({o.contiguous().numpy().tobytes() for o in shifted(x, 3)}) > 20


@pytest.mark.parametrize('pad', [-1, 6, 99])
def test_pad_too_large(pad):
    with pytest.raises(CourseError, match=f'pad = {pad}'): random_crop(torch.rand(2, 3, 6, 9), pad, mode='reflect')


def test_batches(path):
    "Normalised with the training set's statistics; validation is neither shuffled nor moved"
    dls = cifar_dls(path, 20)
    x = dls.train.tensors()[0].float()/255
    xs = torch.cat([b[0] for b in dls.valid]).as_subclass(torch.Tensor)
    raw = dls.valid.tensors()[0].float()/255
    want = (raw - x.mean((0,2,3)).view(1,3,1,1))/x.std((0,2,3)).view(1,3,1,1)
    assert torch.allclose(xs, want, atol=1e-4)
    assert [len(b[1]) for b in dls.train] == [20]*5 and len(dls.train) == 5
    assert 1 < cifar_dls(path, 500).train.bs < 100 # a batch larger than the set is made smaller


def test_shares(path, monkeypatch):
    "Two processes see different halves of the same order, and together every batch of one process with twice the batch"
    def order(rank, world, bs):
        monkeypatch.setenv('RANK', str(rank)); monkeypatch.setenv('WORLD_SIZE', str(world))
        from course_lib.core import seed_everything
        seed_everything(3)
        dl = cifar_dls(path, bs, batch_tfms=[]).train
        dl.rng.seed(5)
        idxs = dl.get_idxs()
        dl.rng.seed(5)
        return idxs, len(dl), len(list(dl))
    (one, n1, m1), (a, n2, m2), (b, *_) = order(0, 1, 20), order(0, 2, 10), order(1, 2, 10)
    assert n1 == m1 == n2 == m2 == 5 and not set(a) & set(b)
    for k in range(5): assert set(one[20*k:20*k+20]) == set(a[10*k:10*k+10]) | set(b[10*k:10*k+10])


# the schedule and the training

@pytest.mark.parametrize('lr,div,tail', [(1.3,20,.2), (.5,50,.15), (1,2,.9)])
def test_cycle(lr, div, tail):
    c, top = triangle_cycle(lr, div, tail), (1-tail)/2
    assert c['lr'](0.) == pytest.approx(lr/div) and c['lr'](top) == pytest.approx(lr) and c['lr'](1.) == pytest.approx(lr/div/100)
    assert c['lr'](2*top) == pytest.approx(lr/div) and c['lr'](top/2) == pytest.approx((lr+lr/div)/2)
    assert c['mom'](0.) == c['mom'](1.) == pytest.approx(.95) and c['mom'](top) == pytest.approx(.85)


@pytest.mark.parametrize('tail', [0, 1, -.1, 2])
def test_no_such_tail(tail):
    with pytest.raises(CourseError, match='tail'): triangle_cycle(1., tail=tail)


def test_momentum_has_an_effect(path):
    "The optimiser gathers momentum and follows the schedule (fastai's SGD made without momentum would ignore it)"
    learn = cifar_learner(cifar_dls(path, 20), Darknet([1], nf=4), cfg())
    with learn.no_bar(), learn.no_logging(): fit_darknet(learn, 2, .1)
    assert 'grad_avg' in learn.opt.state[learn.opt.all_params()[0][0]]
    lrs, moms = learn.recorder.hps['lr'], learn.recorder.hps['mom']
    assert len(set(moms)) > 3 and max(lrs) == lrs[moms.index(min(moms))]


def test_train(small_data):
    learn = darknet.train(cfg())
    learn.load('10_darknet_cifar10')


# several processes

one_step = '''
import os, sys, torch
from pathlib import Path
from torch import nn
from fastai.vision.all import Callback, CancelFitException
from course_lib.core import lesson_settings, seed_everything
from course_lib.darknet import Darknet, cifar_dls, cifar_learner
from course_lib.processes import ShareGradients, joined_processes
path, out, bs = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

class Frozen(Callback):
    def before_batch(self):
        for o in self.model.modules():
            if isinstance(o, nn.BatchNorm2d): o.eval()

class Catch(Callback):
    def before_step(self):
        torch.save([p.grad.clone() for p in self.model.parameters()], out/f'{world}x{bs}-{rank}.pt')
        raise CancelFitException

with joined_processes() as (rank, world):
    seed_everything(1)
    dls = cifar_dls(path, bs, batch_tfms=[])
    torch.manual_seed(rank) # each begins with other weights: they have to be brought together
    learn = cifar_learner(dls, Darknet([1, 1], nf=4), lesson_settings('10', 'sample'), cbs=[Frozen(), Catch()] + [ShareGradients()]*(world > 1))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .1)
'''
whole_lesson = 'from course_lib.cli import course; course()'


def torchrun(tmp_path, code, *args, n=2):
    "Run a script in `n` processes that know of each other"
    f = tmp_path/'script.py'
    f.write_text(code)
    cmd = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(n), f, *map(str, args)]
    res = subprocess.run(cmd, capture_output=True, text=True, timeout=patience, cwd=tmp_path, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert res.returncode == 0, res.stderr[-3000:]
    return res.stdout


def test_two_processes_have_the_gradients_of_one(tmp_path, path):
    "Norms frozen: two processes with 10 pictures each step like one with 20, and not like one with 10"
    torchrun(tmp_path, one_step, path, tmp_path, 10)
    for bs in (20, 10): subprocess.run([sys.executable, tmp_path/'script.py', path, tmp_path, str(bs)], check=True, timeout=patience)
    load = lambda name: torch.cat([o.flatten() for o in torch.load(tmp_path/f'{name}.pt')])
    a, b, whole, half = (load(o) for o in ('2x10-0', '2x10-1', '1x20-0', '1x10-0'))
    assert torch.equal(a, b) and whole.abs().max() > 1e-3
    assert torch.allclose(a, whole, atol=1e-6, rtol=1e-4)
    assert not torch.allclose(a, half, atol=1e-6, rtol=1e-4)


def test_train_under_torchrun(tmp_path):
    "`course train 10` in two processes: one of them speaks and saves"
    (tmp_path/'settings.ini').write_text('[course]\n[10_darknet_cifar10.sample]\nbs = 64\nnf = 4\ngroups = 1 1\nepochs = 1\n')
    out = torchrun(tmp_path, whole_lesson, 'train', '10')
    assert out.count('2 processes of 64 pictures a batch') == 1
    assert (tmp_path/'runs'/'models'/'10_darknet_cifar10.pth').exists()


def test_without_a_compiler(python, tmp_path):
    "torch.compile that fails costs one line, and the network goes on without it"
    code = '''
import torch
from course_lib.models import can_compile
print(can_compile(torch.device('cpu')))'''
    res = python(code, CXX='no-such-compiler', TORCHINDUCTOR_CACHE_DIR=str(tmp_path/'inductor'))
    lines = [o for o in res.stdout.splitlines() if o]
    assert lines[-1] == 'False' and len(lines) == 2 and lines[0].startswith('torch.compile does not work here ('), res.stdout+res.stderr


@pytest.mark.parametrize('works', [True, False])
def test_fast_is_what_there_is(monkeypatch, works):
    "`speed = fast` on a card compiles where that works, and takes the 16 bits that the card has"
    done, net = [], Darknet([1], nf=4)
    monkeypatch.setattr(models, 'course_device', lambda: torch.device('cuda', 0))
    monkeypatch.setattr(Darknet, 'to', lambda self, *args, **kwargs: self)
    monkeypatch.setattr(Darknet, 'compile', lambda self: done.append(self))
    monkeypatch.setattr(models, 'can_compile', lambda device: works)
    for low,mode in ((torch.bfloat16, 'bf16'), (torch.float16, 'fp16')):
        monkeypatch.setattr(models, 'half_dtype', lambda device: low)
        assert models.fast_model(net)[1][-1].amp_mode.value == mode
    assert len(done) == 2*works
