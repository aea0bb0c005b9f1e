"Batches and sizes that the settings allow and the data or the network does not: one line each, before anything trains"
import functools
import pytest, torch
from course_lib import cyclegan, darknet, feature_loss, gan, pairs, phases, resnet, rnn, style, unet, wgan
from course_lib.core import AttrDict, CourseError, lesson_settings
from course_lib.data import get_data


def cfg(lesson, **changed): return lesson_settings(lesson, 'sample', **changed)

def data(name): return get_data(name, 'sample')

@functools.cache
def photo_pairs():
    path, found = pairs.make_pairs(cfg('04', variants=1), 'pairs_sizes')
    return found, path

def critic_dls(**changed):
    files, path = photo_pairs()
    return gan.critic_dls(list(files), [], path, cfg('04', **changed))

def texts(bs): return rnn.number_dls(*rnn.number_ids(data('human_numbers'))[:2], bs, 20)

too_large = { # what asks for more in a batch than there is
    '01': lambda: resnet.mnist_dls(data('mnist'), 1438),
    '11': lambda: phases.sized_dls(cfg('11', bs=8192)),
    '10': lambda: darknet.cifar_dls(data('cifar10'), 3001),
    '02': lambda: unet.scene_dls(data('camvid12'), 321, (16, 22)),
    '04': lambda: pairs.pair_dls(*photo_pairs(), cfg('04', bs=8192, variants=1)),
    "04's critic": lambda: critic_dls(bs_critic=1024, crop=128),
    '05': lambda: pairs.pair_dls(*photo_pairs(), AttrDict({**feature_loss.large_stage(cfg('05', bs_full=8192)), 'variants': 1})),
    '09': lambda: texts(8192),
    '07': lambda: cyclegan.fit_cycle(AttrDict(cfg=cfg('07', bs=8192)), range(300), shown=False),
}

@pytest.mark.parametrize('lesson', [o for o in too_large if o not in ('07', '09')])
def test_fewer_than_a_batch(lesson, capsys):
    "Batches become smaller, and a line says so"
    dl = too_large[lesson]().train
    assert 2 <= dl.bs <= len(dl.dataset)/2 and len(dl) > 1
    said = capsys.readouterr().out.splitlines()
    assert len([o for o in said if 'bs' in o]) <= 1


@pytest.mark.parametrize('lesson', ['07', '09'])
def test_far_fewer_than_a_batch(lesson):
    with pytest.raises(CourseError, match='(?i)(smaller|lower) bs') as e: too_large[lesson]()
    assert '\n' not in str(e.value) and 'bs = ' in str(e.value) or '8192 segments' in str(e.value)


def test_a_whole_batch_is_enough(): assert len(resnet.mnist_dls(data('mnist'), 1437).train) == 1


@pytest.mark.parametrize('dls', [lambda: resnet.mnist_dls(data('mnist'), 1), lambda: darknet.cifar_dls(data('cifar10'), 1)])
def test_batches_of_one(dls):
    "Batch norm has no spread of a single 1×1 grid"
    with pytest.raises(CourseError, match='bs = 1.*larger bs'): dls()


def test_no_pictures(tmp_path):
    for f in (resnet.mnist_dls, darknet.cifar_dls):
        with pytest.raises(CourseError, match='no pictures there'): f(tmp_path, 8)


@pytest.mark.parametrize('dls', [lambda c: pairs.pair_dls(*photo_pairs(), c), lambda c: gan.critic_dls(list(photo_pairs()[0]), [], photo_pairs()[1], c)])
def test_crop_larger_than_the_picture(dls):
    with pytest.raises(CourseError, match='crop = 33.*size = 32'): dls(cfg('04', crop=33, size=32))


@pytest.mark.parametrize('n', range(1, 7))
def test_critic_of_photographs(n):
    "The smallest crop that is let through works, and the next smaller one does not"
    small = next(c for c in (16, 32, 64, 128, 256, 512) if c >= 8*2**n)
    critic = gan.lesson_critic(cfg('04', crop=small, blocks_critic=n, nf_critic=4))
    assert critic.to('meta')(torch.zeros(1, 3, small, small, device='meta')).shape[1] >= 1
    with pytest.raises(CourseError, match='fewer blocks'): gan.lesson_critic(cfg('04', crop=8*2**n-1, blocks_critic=n, nf_critic=4))
    with pytest.raises(RuntimeError): critic(torch.zeros(1, 3, 8*2**n-1, 8*2**n-1, device='meta'))


@pytest.mark.parametrize('generator,halved,smallest', [('resnet', 4, 8), ('unet', 8, 16)])
@pytest.mark.parametrize('layers', range(1, 7))
def test_sizes_of_a_cyclegan(layers, generator, halved, smallest):
    "The smallest size that is let through gives pictures of its size, and a verdict"
    make = lambda sz: cyclegan.CycleGAN(cfg('07', load=sz, sz=sz, ngf=2, ndf=1, blocks=1, layers=layers, generator=generator))
    sz = -(-max(smallest, 3*2**layers)//halved)*halved
    net, x = make(sz), torch.randn(1, 3, sz, sz)
    assert net.G(x).shape == x.shape and net.D_A(x).numel() >= 1
    for bad in (sz+1, sz+2, sz-halved):
        with pytest.raises(CourseError, match=f'sz = {bad}'): make(bad)


@pytest.mark.parametrize('groups', ['a b', '1.5', '', '1 -1', '1, 2'])
def test_groups_of_a_darknet(groups):
    with pytest.raises(CourseError, match='groups = '): darknet.darknet_of(cfg('10', groups=groups))


@pytest.mark.parametrize('layers', ['a b', '9', '0 -1', '1.5'])
def test_layers_of_a_judge(layers):
    with pytest.raises(CourseError, match='judge_layers = '): feature_loss.make_loss_network(cfg('05', judge_layers=layers), torch.rand(2, 3, 16, 16))


@pytest.mark.parametrize('weights', ['1', '1 2 3', ''])
def test_a_weight_for_each_layer(weights):
    with pytest.raises(CourseError, match='layer_weights = '): feature_loss.make_loss(cfg('05', layer_weights=weights), torch.rand(2, 3, 64, 64))


def test_a_block_that_the_judge_lacks():
    net = style.loss_network('course', 'auto', None, torch.device('cpu'))[0]
    assert len(style.block_ends(net, 1)) > 1
    with pytest.raises(CourseError, match='block = 12.*content_block'): style.block_ends(net, 12)


@pytest.mark.parametrize('sz', [8, 17, 48])
def test_sizes_of_a_dcgan(sz):
    with pytest.raises(CourseError, match=f'sz = {sz}'): wgan.make_pair(cfg('06', sz=sz))


@pytest.mark.parametrize('height', [16, 17, 33])
def test_streets_of_any_height(height):
    "Sizes that do not halve evenly go through the U-Net and come back"
    c, path = cfg('02', height_small=height, bs=2), data('camvid12')
    dls = unet.scene_dls(path, 2, unet.scene_size(path, height))
    net, _ = unet.make_unet(c, 12, unet.scene_size(path, height))
    x, y = dls.one_batch()
    assert net(x).shape[-2:] == y.shape[-2:] == unet.scene_size(path, height)
