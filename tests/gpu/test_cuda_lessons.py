"The lessons that have no file of their own here: figures, a training step each, and 16 bits, on a CUDA device"
import subprocess, sys
import pytest, torch
if not torch.cuda.is_available(): pytest.skip('torch sees no CUDA device here', allow_module_level=True)

import torch.nn.functional as F
from course_lib import cyclegan, gan, models, pairs, pointer, rnn, wgan
from course_lib.core import course_device, lesson_settings
from course_lib.show import show_grid, to_array
from course_lib.data import get_data
from course_lib.feature_loss import FeatureLoss, LossNetwork
from course_lib.phases import TrainingPhase, sized_dls, small_net
from course_lib.resnet import course_learner
from course_lib.style import loss_network, picture_batch, soft_noise, transfer, transfer_loss
from PIL import Image


@pytest.fixture
def dev(): return course_device()


def test_figures(dev):
    "Pictures on the card are shown: bytes, floats, 16 bits, with a graph"
    for x in (torch.randint(256, (2,3,8,8), dtype=torch.uint8), torch.rand(2,3,8,8), torch.rand(2,1,8,8, dtype=torch.bfloat16)):
        assert (to_array(x[0].to(dev)) == to_array(x[0])).all()
        show_grid(x.to(dev))
    show_grid(torch.rand(2,3,8,8, device=dev, requires_grad=True))
    x = torch.randn(2,3,8,8, device=dev)
    pairs.show_rows(x, x, x)
    show_grid(models.imagenet_norm(x, back=True))


def test_the_name_costs_no_memory():
    "`course run` names the card, and CUDA has not begun in it"
    code = ('import torch; from course_lib import cli; print(cli._device_name()); assert not torch.cuda.is_initialized()')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == torch.cuda.get_device_name(0)


def test_half_dtype(dev):
    assert models.half_dtype(dev) is (torch.bfloat16 if torch.cuda.get_device_properties(0).major >= 8 else torch.float16)


@pytest.mark.parametrize('half', [torch.bfloat16, torch.float16])
def test_judge_in_half(dev, half):
    "Both types of 16 bits pull where 32 bits pull, also when all is under autocast"
    torch.manual_seed(0)
    net = LossNetwork(models.torchvision_encoder('vgg11'), [1,4,9])
    p, t = torch.randn(2,2,3,128,128)
    net, p, t = net.to(dev), p.to(dev), t.to(dev)
    def slope(low, outer=None):
        q = p.clone().requires_grad_()
        with torch.autocast('cuda', outer, enabled=outer is not None): loss = FeatureLoss(net, low=low)(q, t)
        return torch.autograd.grad(loss, q)[0].flatten()
    for o in (slope(half), slope(None, half), slope(half, half)): assert F.cosine_similarity(o, slope(None), dim=0) > .99


def test_superres(dev):
    "Lesson 04: a step of each side"
    cfg = lesson_settings('04', 'sample')
    gen, critic = (o.to(dev) for o in (gan.make_generator(cfg)[0], gan.lesson_critic(cfg)))
    xb, yb = torch.randn(2, 2, 3, cfg.crop, cfg.crop, device=dev)
    opts = [torch.optim.Adam(o.parameters(), 1e-3) for o in (critic, gen)]
    first = gan.generator_step(gen, critic, opts[1], xb, yb)
    for _ in range(5): gan.critic_step(gen, critic, opts[0], xb, yb); last = gan.generator_step(gen, critic, opts[1], xb, yb)
    assert last < first


def test_bedrooms(dev):
    "Lesson 06: some steps of both sides, and pictures"
    cfg = lesson_settings('06', 'sample', bs=8)
    run = wgan.WGAN(*wgan.make_pair(cfg), torch.randint(256, (16, 3, cfg.sz, cfg.sz), dtype=torch.uint8), cfg)
    run.left = 1
    wgan.fit_wgan(run, 2, quiet=True)
    assert run.epoch == 2 and len(run.history) and run.film[0].shape == (8, 3, cfg.sz, cfg.sz)
    show_grid(wgan.generate(run.gen, run.fixed))


@pytest.mark.parametrize('half', [torch.bfloat16, torch.float16])
def test_cyclegan_in_half(dev, half, monkeypatch):
    "Lesson 07: the first step in 16 bits loses what it loses in 32, later ones (which drift apart) stay finite; float16 has its gradients scaled"
    pair = [F.interpolate(torch.rand(1, 3, 8, 8, device=dev)*2-1, 64, mode='bilinear') for _ in range(2)]
    monkeypatch.setattr(cyclegan, 'half_dtype', lambda _: half)
    got = []
    for o in ('no', 'auto'):
        run = cyclegan.CycleGAN(lesson_settings('07', 'full', ngf=16, ndf=16, blocks=2, sz=64, half=o))
        got.append(cyclegan.cycle_step(run, *pair))
        for _ in range(2): assert all(o.isfinite() for o in cyclegan.cycle_step(run, *pair).values())
        assert run.scaler.is_enabled() == (o == 'auto' and half is torch.float16)
    for k in got[0]: assert got[1][k].item() == pytest.approx(got[0][k].item(), rel=.1, abs=.02), k
    show_grid(cyclegan.cycle_strips(run, *pair))


def test_style(dev):
    "Lesson 08: transfer on the card, and a gradient in both types of 16 bits"
    a, b = (soft_noise((64, 64), 5, i, dev) for i in range(2))
    net, _ = loss_network('course', 'auto', torch.cat([a, b]))
    slopes = []
    for half in (None, torch.bfloat16, torch.float16):
        x = (.5*a+.5*b).requires_grad_()
        slopes.append(torch.autograd.grad(transfer_loss(net, a, b, half=half)(x).sum(), x)[0].flatten())
    for o in slopes[1:]: assert F.cosine_similarity(o, slopes[0], dim=0) > .97
    ims = [Image.fromarray((to_array(o[0])*255).astype('uint8')) for o in (a, b)]
    x = transfer(net, *ims, size=64, evals=4)
    assert x.device.type == dev.type and x.isfinite().all()
    assert picture_batch(ims[0], 32).device.type == dev.type


@pytest.mark.parametrize('make', [rnn.Model0, rnn.Model1, rnn.Model2, rnn.Model3, rnn.Model4, rnn.Model5])
def test_words(dev, make):
    "Lesson 09: Models 0 to 5 take batches from the card and learn"
    train, valid, vocab, _ = rnn.number_ids(get_data('human_numbers', 'sample'))
    dls = rnn.number_dls(train[:4000], valid[:2000], 16, 3 if make is rnn.Model0 else 16)
    loss = rnn.last_word_loss if make in (rnn.Model0, rnn.Model1) else None
    learn = rnn.words_learner(dls, make(len(vocab), 32), loss)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    assert next(learn.model.parameters()).device.type == dev.type and learn.validate()[1] > .05


def test_tied_and_pointer(dev):
    "Lesson 09b: the models that keep more than a state, forward and backward"
    x = torch.randint(31, (4, 12), device=dev)
    for o in (pointer.TiedLM(31, 16), pointer.PointerLM(31, 16)):
        for _ in range(2): rnn.word_scores(o.to(dev), x).square().mean().backward() # twice: with a state that was kept


def test_phases(dev):
    "Lesson 11: phases on the card"
    learn = course_learner(sized_dls(lesson_settings('11', 'sample'), 14), small_net(4))
    with learn.no_bar(), learn.no_logging(): learn.fit_phases([TrainingPhase(.5, lr=(.01, .1), lr_decay='linear'), TrainingPhase(.5, lr=.1)])
    assert len(learn.phase_log.lr) == len(learn.phase_log.losses) == learn.phase_log.starts[-1]


def test_compiles_or_tells(dev, monkeypatch, capsys):
    "Lesson 10: code is made for the card; where it cannot be, one line"
    assert models.can_compile(dev) and capsys.readouterr().out == ''
    def broken(f):
        def g(*args): raise RuntimeError('no compiler\nat all')
        return g
    monkeypatch.setattr(torch, 'compile', broken)
    assert not models.can_compile(dev)
    assert capsys.readouterr().out == 'torch.compile does not work here (RuntimeError: no compiler). Going on without it, slower\n'
