"What only a CUDA machine can show: COURSE_TEST_GPU=1 pytest tests/gpu, or `make test-gpu`"
import pytest, torch
if not torch.cuda.is_available(): pytest.skip('torch sees no CUDA device here', allow_module_level=True)

import torch.nn.functional as F
from course_lib import cyclegan, models, unet
from course_lib.core import CourseError, course_device, device_name, lesson_settings
from course_lib.results import record
from course_lib.data import get_data
from course_lib.tensors import random_crop
from course_lib.resnet import course_learner, mnist_dls, resnet_ish, simple_cnn


@pytest.fixture
def dls(): return mnist_dls(get_data('mnist', 'sample'), bs=64)


def test_device():
    assert course_device().type == 'cuda'
    assert device_name() == torch.cuda.get_device_name(0)


def test_batches_are_there(dls):
    for dl in dls:
        xb, yb = dl.one_batch()
        assert xb.is_cuda and yb.is_cuda and xb.dtype == torch.float32


def test_crop_on_the_device():
    "The same places give the same crops as on the CPU, and random places are drawn on the device"
    x, (i, j) = torch.rand(32, 1, 28, 28), torch.randint(7, (2, 32))
    assert torch.equal(random_crop(x.cuda(), 3, i.cuda(), j.cuda()).cpu(), random_crop(x, 3, i, j))
    y = random_crop(x[:1].cuda().expand(32, 1, 28, 28), 3)
    assert y.is_cuda and len({bytes(o.numpy()) for o in y.cpu()}) > 5


def test_it_learns(dls):
    "One epoch on the sample beats guessing (a tenth)"
    torch.manual_seed(0)
    learn = course_learner(dls, simple_cnn())
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, .1)
    assert learn.validate()[1] > .2


@pytest.mark.parametrize('train', [True, False])
def test_same_loss_as_on_the_cpu(dls, train):
    "A ResNet's loss on one batch: CPU and CUDA agree to 1e-3"
    torch.manual_seed(0)
    xb, yb = (o.cpu().as_subclass(torch.Tensor) for o in dls.valid.one_batch())
    model = resnet_ish().train(train)
    start = {k: v.clone() for k,v in model.state_dict().items()}
    cpu = F.cross_entropy(model(xb), yb)
    model.load_state_dict(start)
    assert F.cross_entropy(model.cuda()(xb.cuda()), yb.cuda()).item() == pytest.approx(cpu.item(), abs=1e-3)


def test_recorded_as_cuda():
    res = record('01', lesson_settings('01', 'sample'), 1797, acc_cnn=.9)
    assert res['device_kind'] == 'cuda' and res['device'] == torch.cuda.get_device_name(0)


def scenes_learner(bs, sz, arch='resnet18'):
    path = get_data('camvid12', 'sample')
    codes = (path/'codes.txt').read_text().split()
    model = unet.Unet(models.torchvision_encoder(arch), len(codes), sz, bottle=True)
    return unet.segmenter(unet.scene_dls(path, bs, sz, 1.), model, codes)


def test_streets_on_the_device():
    "One epoch of a ResNet-18 U-Net from scratch is better than one class for all"
    torch.manual_seed(0)
    learn = scenes_learner(16, (96, 128))
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1, 3e-3)
    assert next(learn.model.parameters()).is_cuda and learn.validate()[1] > .4


def test_measured_memory_is_enough():
    "A batch that `bs_that_fits` allows does train in that memory, and the estimate is not absurdly careful"
    sz, model = (96, 128), unet.Unet(models.torchvision_encoder('resnet18'), 12, (96, 128)).cuda()
    memory = 4*10**9
    bs = models.bs_that_fits(model, sz, memory)
    torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats()
    opt = torch.optim.Adam(model.parameters())
    for _ in range(2):
        model(torch.randn(bs, 3, *sz, device='cuda')).square().mean().backward()
        opt.step(); opt.zero_grad()
    assert .3*memory < torch.cuda.max_memory_allocated() < memory


def test_out_of_memory_is_told():
    "A real one: the process may take two gigabytes of the card"
    share = 2*10**9/torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1., share))
    learn = scenes_learner(64, (384, 512))
    try:
        with pytest.raises(CourseError, match='does not fit.*What would'):
            with models.tell_memory(64, learn.model, (384, 512)), learn.no_bar(), learn.no_logging(): learn.fit(1)
    finally: torch.cuda.set_per_process_memory_fraction(1.)
    assert torch.zeros(1000, device='cuda').sum() == 0, 'the device still works'


def a_cyclegan(device, monkeypatch, **changed):
    monkeypatch.setenv('COURSE_DEVICE', device)
    return cyclegan.CycleGAN(lesson_settings('07', 'full', **{**dict(ngf=16, ndf=16, blocks=2, sz=64), **changed}))


def test_cyclegan_gradients(monkeypatch):
    "One picture, channels-last on the card: the generators' gradient has the CPU's direction and size"
    torch.manual_seed(0)
    pair = [torch.rand(1, 3, 64, 64)*2-1 for _ in range(2)]
    def grads(device):
        gan = a_cyclegan(device, monkeypatch)
        loss = sum(cyclegan.generator_losses(gan, *(o.to(device) for o in pair))[0].values())
        return [o.cpu() for o in torch.autograd.grad(loss, [gan.G.layers[1].weight, gan.F.layers[4].weight])]
    tf32 = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = False
        for p,q in zip(grads('cuda'), grads('cpu')):
            assert F.cosine_similarity(p.flatten(), q.flatten(), dim=0) > .999 and (p-q).abs().max() < .05*q.abs().max()
    finally: torch.backends.cudnn.allow_tf32 = tf32


def test_cyclegan_in_half(monkeypatch):
    "The eight losses in bfloat16 are those in 32 bits within 2 %"
    torch.manual_seed(0)
    pair = [F.interpolate(torch.rand(1, 3, 8, 8)*2-1, 64, mode='bilinear').cuda() for _ in range(2)]
    got = [cyclegan.cycle_step(a_cyclegan('cuda', monkeypatch, half=o), *pair) for o in ('no', 'auto')]
    for k in got[0]: assert got[1][k].item() == pytest.approx(got[0][k].item(), rel=.02, abs=.002), k
