"Lesson 10 on a CUDA device: batches made there, 16 bits and compiling, the same crops and the same loss as on the CPU"
import pytest, torch
if not torch.cuda.is_available(): pytest.skip('torch sees no CUDA device here', allow_module_level=True)

import torch.nn.functional as F
from fastai.vision.all import TensorImage
from course_lib import darknet
from course_lib.core import lesson_settings, seed_everything
from course_lib.darknet import CropAndMirror, Darknet, cifar_dls, cifar_learner, fit_darknet
from course_lib.tensors import random_crop
from course_lib.samples.things import make_things


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    p = tmp_path_factory.mktemp('things')
    make_things(p, n_train=40, n_valid=10)
    return p


def cfg(**changed): return lesson_settings('10', 'sample', **dict(bs=32, nf=8, groups='1 1', epochs=3, **changed))


def test_pictures_lie_on_the_device(path):
    dls = cifar_dls(path, 32)
    x, y = dls.train.tensors()
    assert x.is_cuda and y.is_cuda and x.dtype == torch.uint8
    for dl in dls:
        for xb, yb in dl: assert xb.is_cuda and yb.is_cuda and xb.dtype == torch.float32


def test_same_crops_as_on_the_cpu():
    x, (i, j) = torch.randint(256, (32, 3, 32, 32), dtype=torch.uint8), torch.randint(9, (2, 32))
    assert torch.equal(random_crop(x.cuda(), 4, i.cuda(), j.cuda(), 'reflect').cpu(), random_crop(x, 4, i, j, 'reflect'))
    y = CropAndMirror()(TensorImage(x[:1].cuda().expand(32, 3, 32, 32)), split_idx=0)
    assert y.is_cuda and y.dtype == torch.uint8 and len({bytes(o.numpy()) for o in y.as_subclass(torch.Tensor).cpu()}) > 5


def test_same_loss_as_on_the_cpu(path):
    xb, yb = (o.cpu().as_subclass(torch.Tensor) for o in cifar_dls(path, 32).one_batch())
    torch.manual_seed(0)
    net = Darknet([1, 1], nf=8).eval()
    cpu = F.cross_entropy(net(xb), yb).item()
    assert F.cross_entropy(net.cuda()(xb.cuda()), yb.cuda()).item() == pytest.approx(cpu, abs=1e-3)


@pytest.mark.parametrize('speed', ['plain', 'fast'])
def test_it_learns(path, speed):
    "Loss falls in 16 bits and compiled as it does plainly, the weights stay in 32 bits, and the names of the weights stay"
    seed_everything(1)
    learn = cifar_learner(cifar_dls(path, 32), Darknet([1, 1], nf=8), cfg(speed=speed))
    with learn.no_bar(), learn.no_logging(): fit_darknet(learn, 3, .1)
    first, last = float(learn.recorder.losses[0]), float(learn.recorder.losses[-1])
    assert last < first and all(p.dtype == torch.float32 for p in learn.model.parameters())
    assert set(learn.model.state_dict()) == set(Darknet([1, 1], nf=8).state_dict())
    learn.get_preds()


def test_train(path, monkeypatch):
    monkeypatch.setattr(darknet, 'get_data', lambda *args: path)
    darknet.train(cfg(speed='fast')).load('10_darknet_cifar10')
