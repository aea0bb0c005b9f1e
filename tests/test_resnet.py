"What lesson 01's module promises to those who import it"
import json
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
import pytest, torch
import fastcore.test as ft
from torch import nn
from fastai.vision.all import ResBlock as FastaiResBlock
from course_lib.core import CourseError
from course_lib.data import get_data
from course_lib.resnet import course_learner, deep_net, digit_tfms, mnist_dls, n_params, res_block, resnet_ish, short_cnn, simple_cnn

root = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def xb(): return torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def dls(): return mnist_dls(get_data('mnist', 'sample'), bs=64)


@pytest.mark.parametrize('net', [simple_cnn, short_cnn, resnet_ish, lambda: deep_net(20, True), lambda: deep_net(8, False)])
def test_one_number_a_digit(net, xb): assert net().eval()(xb).shape == (4, 10)


def test_parameters():
    assert n_params(simple_cnn()) == 12_126
    assert n_params(deep_net(56, True)) > n_params(deep_net(20, True)) > n_params(deep_net(20, False))


@pytest.mark.parametrize('depth', [2, 7, 21, 57, 0, -4])
def test_wrong_depth(depth):
    with pytest.raises(CourseError, match=f'{depth} is not'): deep_net(depth, True)


def test_batches(dls):
    "Normalised by statistics of a batch; the class is the folder's name"
    xb, yb = dls.one_batch()
    assert xb.shape == (64, 1, 28, 28) and abs(xb.mean()) < .2 and abs(xb.std()-1) < .2
    assert list(dls.vocab) == list('0123456789') and len(dls.train_ds) == 1437 and len(dls.valid_ds) == 360
    for f,(_,y) in list(zip(dls.valid_ds.items, dls.valid_ds))[:5]: assert dls.vocab[y] == f.parent.name


def test_our_block_is_fastais():
    "At the start it is a ReLU; with fastai's weights it gives fastai's result"
    ours, theirs, x = res_block(8).eval(), FastaiResBlock(1, 8, 8).eval(), torch.randn(2, 8, 5, 5)
    assert torch.equal(ours(x), x.relu())
    for a,b in zip(ours.parameters(), theirs.parameters(), strict=True): a.data.copy_(torch.nn.init.normal_(b.data))
    assert torch.allclose(ours(x), theirs(x), atol=1e-4) and not torch.allclose(ours(x), x.relu(), atol=.1)


def test_it_learns(dls):
    "Two epochs on the sample are far better than guessing"
    torch.manual_seed(0)
    learn = course_learner(dls, simple_cnn())
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, .1)
    assert learn.validate()[1] > .5


def cells_of_the_lesson(): return [c['source'] for c in json.loads((root/'nbs/01_mnist_resnet.ipynb').read_text())['cells'] if c['cell_type'] == 'code']


def test_a_wrong_head_fails_at_once(xb):
    "The lesson looks at the shape before each training"
    cell = next(o for o in cells_of_the_lesson() if o.startswith('def check_head'))
    names = dict(torch=torch, test_eq=ft.test_eq, device='cpu', xb=xb, dls=SimpleNamespace(vocab='0123456789'))
    exec(cell.split('\n\n')[0], names)
    net = resnet_ish()
    assert names['check_head'](net) is net
    for bad in (nn.Sequential(nn.Flatten(), nn.Linear(784, 9)), short_cnn()[1:], short_cnn()[:-1]):
        with pytest.raises((AssertionError, RuntimeError)): names['check_head'](bad)
    trained = [l for o in cells_of_the_lesson() for l in o.splitlines() if l.startswith(('learn = course_learner(', '    learn = course_learner(dls'))]
    assert len(trained) >= 4 and all('check_head(' in o for o in trained)


def test_one_place_for_the_padding():
    "What moves the digits is said once, and the lesson and `course train 01` both take it from there"
    assert signature(mnist_dls).parameters['batch_tfms'].default is digit_tfms
    assert sum('RandomPadCrop(' in o for o in cells_of_the_lesson()) == 1
