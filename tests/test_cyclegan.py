"CycleGAN: bad input, what training may see, checkpoints, the same next step, two processes"
import os, subprocess, sys
import numpy as np, pytest, torch, torch.nn.functional as F
from PIL import Image
from conftest import patience

from course_lib import cyclegan
from course_lib.checkpoints import load_checkpoint, save_checkpoint
from course_lib.core import CourseError, lesson_settings
from course_lib.cyclegan import (CycleGAN, ImagePool, InstanceNorm, NLayerDiscriminator, ResnetGenerator, UnalignedDataset, choosing_split, cycle_state,
    cycle_step, cycle_strips, fit_cycle, fixed_pairs, gan_loss, generator_losses, lr_factor, measure_cycle, true_counterparts)
from course_lib.metrics import psnr
from course_lib.samples.horses import horse_pair, make_horses


def tiny(**changed): return lesson_settings('07', **{**dict(ngf=4, ndf=4, blocks=1, load=36, sz=32, bs=1, epochs=2, epochs_decay=1, pool=2), **changed})


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    p = tmp_path_factory.mktemp('horses')
    make_horses(p, n_train=4, n_valid=2, n_test=2)
    for f in sorted((p/'trainB').iterdir())[3:]: f.unlink() # three zebras to four horses
    return p


def dataset(path, seed=0, **kw): return UnalignedDataset(path, 'train', 36, 32, augment=True, seed=seed, **kw)
def same_nets(a, b): return all(torch.equal(p, q) for p,q in zip(a.parameters(), b.parameters(), strict=True))


def test_missing_side(path, tmp_path):
    with pytest.raises(CourseError, match='trainA: no pictures there'): UnalignedDataset(tmp_path, 'train', 36, 32)
    with pytest.raises(CourseError, match='otherA: no pictures'): UnalignedDataset(path, 'other', 36, 32)


def test_crop_larger_than_picture(path):
    with pytest.raises(CourseError, match='sz = 40 cannot be cut out of load = 36'): UnalignedDataset(path, 'train', 36, 40)


def test_batch_too_large(path):
    with pytest.raises(CourseError, match='bs = 8, and there are 4'): fit_cycle(CycleGAN(tiny(bs=8)), dataset(path), shown=False)


def test_broken_picture(path, tmp_path):
    for o in ('trainA', 'trainB'): (tmp_path/o).mkdir()
    Image.new('RGB', (40, 40)).save(tmp_path/'trainA'/'a.png')
    (tmp_path/'trainB'/'b.png').write_bytes(b'no picture')
    with pytest.raises(CourseError, match='b.png: not a picture'): dataset(tmp_path)


def test_sides_of_other_shapes(tmp_path):
    "Grey, palette and wide pictures come out as RGB squares"
    for o,mode,size in (('trainA', 'L', (50, 20)), ('trainB', 'P', (64, 64))):
        (tmp_path/o).mkdir()
        Image.new(mode, size).save(tmp_path/o/'x.png')
    a, b = dataset(tmp_path)[0]
    assert a.shape == b.shape == (3, 32, 32)


def test_length_and_partners(path):
    "As long as the longer side, each of whose pictures comes once an epoch; partners are valid and change with the epoch"
    ds, seen = dataset(path), []
    assert len(ds) == 4
    for e in range(6):
        ds.set_epoch(e)
        assert sorted(ds.ids[0]) == [0, 1, 2, 3] and set(ds.ids[1]) <= {0, 1, 2}
        seen.append((tuple(ds.ids[0]), tuple(ds.ids[1])))
    assert len(set(seen)) > 3


def test_items_depend_on_seed_and_epoch_only(path):
    one, two, other = dataset(path), dataset(path), dataset(path, seed=1)
    for o in (one, two, other): o.set_epoch(5)
    [two[i] for i in (3, 1, 2)]; torch.rand(7); np.random.rand(3)
    assert all(torch.equal(x, y) for i in range(4) for x,y in zip(one[i], two[i]))
    assert not all(torch.equal(x, y) for i in range(4) for x,y in zip(one[i], other[i]))


def test_validation_stands_still(path):
    ds = [UnalignedDataset(path, 'test', 32, 32) for _ in range(2)]
    assert all(torch.equal(x, y) for i in range(2) for x,y in zip(ds[0][i], ds[1][i]))
    assert ds[0].ids[0].tolist() == [0, 1], 'in order'


def test_training_never_opens_the_truth(path, monkeypatch):
    opened, cache = [], cyclegan.image_cache
    monkeypatch.setattr(cyclegan, 'image_cache', lambda files, *a: opened.extend(files) or cache(files, *a))
    fit_cycle(CycleGAN(tiny(epochs=1, epochs_decay=0)), dataset(path), shown=False)
    assert opened and not [o for o in opened if 'truth' in o.parts]
    assert true_counterparts(path, 'test', 'A', 32).shape == (2, 3, 32, 32) and [o for o in opened if 'truth' in o.parts], 'measuring does, and is seen to'


def test_looking_leaves_the_test_pictures_alone(path, tmp_path, monkeypatch):
    "What is shown while training is from `valid`; from `test` only where there is no `valid`"
    opened, cache = [], cyclegan.image_cache
    monkeypatch.setattr(cyclegan, 'image_cache', lambda files, *a: opened.extend(files) or cache(files, *a))
    a, b = fixed_pairs(tiny(), path, 2)
    assert a.shape == b.shape == (2, 3, 32, 32) and {o.parent.name for o in opened} == {'validA', 'validB'}
    assert choosing_split(tmp_path) == 'test'


def test_parts_share_no_picture(path):
    "Training, choosing and reporting are done on different scenes"
    parts = [{Image.open(f).tobytes() for side in 'AB' for top in (path, path/'truth') for f in (top/f'{o}{side}').iterdir()}
        for o in ('train', 'valid', 'test')]
    assert sum(map(len, parts)) == len(set.union(*parts)) and min(map(len, parts)) == 8


def test_measured_against_the_truth_of_its_part(path):
    "The truth itself is without an error, on either part; that of another part is not"
    for o in ('valid', 'test'):
        ds = UnalignedDataset(path, o, 32, 32)
        same = measure_cycle(lambda x: x, lambda x: x, path, ds, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3*32*32, 1)))
        want = psnr(ds.a/255, (true_counterparts(path, o, 'A', 32)+1)/2).mean().item()
        assert same['psnr_zebra'] == pytest.approx(want, abs=1e-3)
    assert not torch.equal(*(true_counterparts(path, o, 'A', 32) for o in ('valid', 'test')))


def test_no_truth_is_no_error(tmp_path): assert true_counterparts(tmp_path, 'test', 'A', 32) is None


def test_counterparts_lie_apart(path):
    "No picture of a heap is the counterpart of one in the other heap, and each has its own"
    read = lambda *o: {Image.open(f).tobytes() for f in path.joinpath(*o).iterdir()}
    assert not read('truth', 'trainA') & read('trainB') and not read('truth', 'trainB') & read('trainA')
    assert {o.name for o in (path/'truth'/'trainA').iterdir()} == {o.name for o in (path/'trainA').iterdir()}
    a, b = (np.asarray(Image.open(path/o/'testA'/'0001.png'), int) for o in ('.', 'truth'))
    assert .4 < (a == b).all(-1).mean() < .95, 'the same land, another coat'


@pytest.mark.parametrize('sz', [32, 64, 96])
def test_horse_pair_sizes(sz):
    assert [o.size for o in horse_pair(3, sz)] == [(sz, sz)]*2


def test_pool_gives_no_graph():
    x = torch.rand(1, 3, 4, 4, requires_grad=True)
    assert all(not ImagePool(n)(x*2).requires_grad for n in (0, 2))


def test_pool_keeps_copies():
    pool, x = ImagePool(1), torch.zeros(1, 1, 1, 1)
    pool(x)
    x += 5
    assert pool.kept[0].item() == 0


@pytest.mark.parametrize('n', [1, 2])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_gradients_in_any_layout(n, layout):
    "Through a whole generator, against doubles and PyTorch's own norm, laid out plainly"
    def grad(dtype, layout, norm):
        torch.manual_seed(0)
        net = ResnetGenerator(4, 1)
        if norm: [setattr(o, 'forward', F.instance_norm) for o in net.modules() if isinstance(o, InstanceNorm)]
        net = net.to(dtype).to(memory_format=layout)
        x = torch.linspace(-1, 1, n*3*16*16, dtype=dtype).sin().view(n, 3, 16, 16)
        return torch.autograd.grad((net(x)-x).abs().mean(), net.layers[1].weight)[0].double()
    want = grad(torch.float64, torch.contiguous_format, True)
    assert (grad(torch.float32, layout, False)-want).abs().max() < 1e-3*want.abs().max()


def test_both_in_one_batch_is_two_passes():
    gan = CycleGAN(tiny(skip=0))
    a, b = (torch.rand(1, 3, 32, 32)*2-1 for _ in range(2))
    got, (fake_a, fake_b) = generator_losses(gan, a, b)
    G, H, c = gan.G, gan.F, gan.cfg
    want = dict(G_A=gan_loss(gan.D_A(H(b)), True), G_B=gan_loss(gan.D_B(G(a)), True), cycle_A=c.lam*(H(G(a))-a).abs().mean(),
        cycle_B=c.lam*(G(H(b))-b).abs().mean(), same_A=c.lam*c.idt*(H(a)-a).abs().mean(), same_B=c.lam*c.idt*(G(b)-b).abs().mean())
    assert {k: v.item() for k,v in got.items()} == pytest.approx({k: v.item() for k,v in want.items()}, rel=1e-4)
    for p,q in zip(*(torch.autograd.grad(sum(o.values()), gan.gens, retain_graph=True) for o in (got, want))):
        assert torch.allclose(p, q, atol=1e-4*max(1, q.abs().max()))


def test_no_identity_loss():
    gan = CycleGAN(tiny(idt=0.))
    losses = cycle_step(gan, *(torch.rand(1, 3, 32, 32) for _ in range(2)))
    assert losses['same_A'] == losses['same_B'] == 0 and losses['cycle_A'] > 0


def test_critics_are_frozen_for_the_generators(monkeypatch):
    gan, seen, move = CycleGAN(tiny()), [], cyclegan._move
    monkeypatch.setattr(cyclegan, '_move', lambda *args: (seen.append([p.requires_grad for p in gan.critics]), move(*args)))
    cycle_step(gan, *(torch.rand(1, 3, 32, 32) for _ in range(2)))
    assert not any(seen[0]) and all(seen[1])


def test_schedule_is_used(path, monkeypatch):
    "Constant, then linear: what the optimisers were given in each epoch"
    gan, rates = CycleGAN(tiny(epochs=1, epochs_decay=3)), []
    monkeypatch.setattr(cyclegan, 'cycle_step', lambda *args: (rates.append([o.param_groups[0]['lr'] for o in (gan.opt_g, gan.opt_d)]), cycle_step(*args))[1])
    fit_cycle(gan, dataset(path), shown=False)
    c = gan.cfg
    want = np.array([(c.lr*k, c.lr_critic*k) for k in (1, .75, .5, .25)])
    assert len(rates) == 16 and np.allclose(np.array(rates)[::4], want) and np.allclose(np.array(rates)[3::4], want)
    assert lr_factor(199, 100, 100) == pytest.approx(1/101) and lr_factor(99, 100, 100) == 1


def stopped_after(monkeypatch, n, *args):
    "`fit_cycle`, interrupted after `n` steps"
    steps = []
    def step(*pair):
        if len(steps) == n: raise KeyboardInterrupt
        steps.append(1)
        return cycle_step(*pair)
    monkeypatch.setattr(cyclegan, 'cycle_step', step)
    with pytest.raises(KeyboardInterrupt): fit_cycle(*args, shown=False)
    monkeypatch.setattr(cyclegan, 'cycle_step', cycle_step)


@pytest.mark.parametrize('stop', [4, 7])
def test_resumed_is_never_stopped(path, tmp_path, monkeypatch, stop):
    "Stopped at the end of an epoch or in the middle of the next, and gone on with by another object: the very same weights, optimisers and pools"
    whole, first, second = (CycleGAN(tiny(), seed=s) for s in (0, 0, 5))
    fit_cycle(whole, dataset(path), shown=False)
    stopped_after(monkeypatch, stop, first, dataset(path), tmp_path)
    assert not same_nets(first, whole)
    fit_cycle(second, dataset(path), tmp_path, resume=True, shown=False)
    assert same_nets(second, whole)
    for a,b in zip((second.opt_g, second.opt_d), (whole.opt_g, whole.opt_d)):
        for p,q in zip(a.state_dict()['state'].values(), b.state_dict()['state'].values()): assert all(torch.equal(p[k], q[k]) for k in p)
    for p,q in zip(second.pools, whole.pools):
        assert all(torch.equal(x, y) for x,y in zip(p.kept, q.kept)) and torch.equal(p.rng.get_state(), q.rng.get_state())


def test_without_the_pools_it_would_differ(path, tmp_path, monkeypatch):
    "The test above would notice a pool that is not restored"
    whole, first, second = (CycleGAN(tiny(), seed=0) for _ in range(3))
    fit_cycle(whole, dataset(path), shown=False)
    stopped_after(monkeypatch, 4, first, dataset(path), tmp_path)
    monkeypatch.setattr(ImagePool, 'load_state_dict', lambda self, s: None)
    fit_cycle(second, dataset(path), tmp_path, resume=True, shown=False)
    assert not same_nets(second, whole)


def test_a_finished_run_has_nothing_to_do(path, tmp_path):
    gan = CycleGAN(tiny(epochs=1, epochs_decay=0))
    log = fit_cycle(gan, dataset(path), tmp_path, shown=False)
    again = CycleGAN(tiny(epochs=1, epochs_decay=0), seed=3)
    assert fit_cycle(again, dataset(path), tmp_path, resume=True, shown=False) == log and same_nets(gan, again)


def test_strips_after_each_epoch(path, tmp_path):
    ds = UnalignedDataset(path, 'test', 32, 32)
    fixed = tuple(torch.stack(o) for o in zip(ds[0], ds[1]))
    fit_cycle(CycleGAN(tiny()), dataset(path), tmp_path, fixed, shown=False)
    files = sorted((tmp_path/'strips').iterdir())
    assert [o.name for o in files] == ['000.png', '001.png', '002.png'] and Image.open(files[0]).size == (6*32, 2*32)
    first = np.asarray(Image.open(files[0]))[:32, :32]/127.5 - 1
    assert np.abs(first.transpose(2, 0, 1) - fixed[0][0].numpy()).max() < 1/127, 'the input is shown as it is: neither inverted nor scaled twice'


def save(gan, file, **place): save_checkpoint(file, *cycle_state(gan), **place)
def load(gan, file): return load_checkpoint(file, *cycle_state(gan))


def test_torn_checkpoint(tmp_path):
    gan = CycleGAN(tiny())
    save(gan, tmp_path/'x.pth')
    whole = (tmp_path/'x.pth').read_bytes()
    (tmp_path/'x.pth').write_bytes(whole[:len(whole)//2])
    with pytest.raises(CourseError, match='x.pth: not a checkpoint that can be read'): load(gan, tmp_path/'x.pth')
    with pytest.raises(CourseError, match='y.pth: there is no checkpoint'): load(gan, tmp_path/'y.pth')


def test_a_full_disk_spoils_nothing(tmp_path, monkeypatch):
    gan = CycleGAN(tiny())
    save(gan, tmp_path/'x.pth', epoch=1)
    def full(fd): raise OSError(28, 'No space left on device')
    monkeypatch.setattr('os.fsync', full)
    with pytest.raises(OSError): save(gan, tmp_path/'x.pth', epoch=2)
    assert [o.name for o in tmp_path.iterdir() if 'pth' in o.name] == ['x.pth'] and load(gan, tmp_path/'x.pth') == dict(epoch=1)


def test_checkpoint_of_other_settings(tmp_path):
    save(CycleGAN(tiny()), tmp_path/'x.pth')
    with pytest.raises(CourseError, match=r'ngf = 4 \(now 8\)'): load(CycleGAN(tiny(ngf=8)), tmp_path/'x.pth')


def test_checkpoint_of_more_processes(tmp_path, monkeypatch):
    "Each has its own pools, so there must be as many"
    save(CycleGAN(tiny()), tmp_path/'x.pth')
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(CourseError, match='made by 1 processes, and there are 2'): load(CycleGAN(tiny()), tmp_path/'x.pth')


def test_nan_stops_and_spares_the_checkpoint(path, tmp_path, monkeypatch):
    "The epoch in which a weight becomes NaN is the last; checkpoint, strips and log of the one before stay"
    gan, n = CycleGAN(tiny(epochs=4, epochs_decay=0)), []
    def burn(gan, a, b):
        n.append(1)
        if len(n) == len(dataset(path)) + 2: next(gan.F.parameters()).data.fill_(torch.nan)
        return cycle_step(gan, a, b)
    monkeypatch.setattr(cyclegan, 'cycle_step', burn)
    ds = UnalignedDataset(path, 'test', 32, 32)
    some = tuple(torch.stack(o) for o in zip(ds[0], ds[1]))
    with pytest.raises(CourseError, match='fit_cycle, epoch 2: the training has failed') as e:
        fit_cycle(gan, dataset(path), tmp_path, some, shown=False)
    assert '\n' not in str(e.value)
    again = CycleGAN(tiny(epochs=4, epochs_decay=0))
    assert len(load(again, tmp_path/'last.pth')['log']) == 1 and all(p.isfinite().all() for p in again.parameters())
    assert [o.name for o in (tmp_path/'strips').iterdir()] == ['000.png']


def test_no_code_in_a_checkpoint(tmp_path):
    "A file that would run code when unpickled is refused"
    class Evil:
        def __reduce__(self): return os.system, ('touch evil',)
    torch.save(Evil(), tmp_path/'x.pth')
    with pytest.raises(CourseError, match='not a checkpoint'): load(CycleGAN(tiny()), tmp_path/'x.pth')
    assert not os.path.exists('evil')


@pytest.mark.parametrize('net', [ResnetGenerator(4, 2), ResnetGenerator(4, 2, skip=True), NLayerDiscriminator(4, 2)])
def test_every_weight_learns(net):
    torch.manual_seed(0)
    net(torch.rand(2, 3, 32, 32)*2-1).square().mean().backward()
    assert not [n for n,p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


def test_strips_leave_no_graph():
    gan = CycleGAN(tiny())
    assert not any(o.requires_grad for o in cycle_strips(gan, *(torch.rand(1, 3, 32, 32) for _ in range(2))))


in_a_process = '''
import sys, torch
from course_lib.core import lesson_settings
from course_lib.cyclegan import CycleGAN, UnalignedDataset, cycle_batches, cycle_step
from course_lib.processes import joined_processes
torch.set_num_threads(1)
with joined_processes() as (rank, world):
    cfg = lesson_settings('07', ngf=4, ndf=4, blocks=1, load=36, sz=32, bs=int(sys.argv[3]))
    gan = CycleGAN(cfg)
    ds = UnalignedDataset(sys.argv[1], 'train', 36, 32, augment=True)
    cycle_step(gan, *next(cycle_batches(ds, cfg.bs)))
    torch.save([p.grad for p in gan.parameters() if p.requires_grad], f'{sys.argv[2]}-{rank}.pt')
'''


def test_two_processes_have_one_gradient(path, tmp_path):
    "torchrun, two processes with a pair each, against one with both pairs"
    (tmp_path/'go.py').write_text(in_a_process)
    run = lambda *cmd: subprocess.run([sys.executable, *map(str, cmd)], capture_output=True, text=True, timeout=patience, cwd=tmp_path,
        env={**os.environ, 'OMP_NUM_THREADS': '1'})
    res = run('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', 2, 'go.py', path, tmp_path/'two', 1), run('go.py', path, tmp_path/'one', 2)
    for o in res: assert o.returncode == 0, o.stderr[-2000:]
    one, left, right = (torch.load(tmp_path/f'{o}.pt') for o in ('one-0', 'two-0', 'two-1'))
    scale = max(p.abs().max() for p in one)
    for p,q,r in zip(one, left, right, strict=True): assert torch.equal(q, r) and (p-q).abs().max() < 1e-5*scale


def test_sixteen_bits(monkeypatch):
    "The sample's numbers are the same on any CPU; where 16 bits are asked for, and there, the losses are those in 32 within 2 %"
    assert CycleGAN(tiny()).low is None
    monkeypatch.setattr(cyclegan, 'half_dtype', lambda device: torch.bfloat16)
    a, b = (F.interpolate(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(k))*2-1, 32, mode='bilinear') for k in (1, 2))
    want, got = (cycle_step(CycleGAN(tiny(half=o)), a, b) for o in ('no', 'auto'))
    for k in want: assert got[k].item() == pytest.approx(want[k].item(), rel=.02, abs=.005), k
    assert any(got[k] != want[k] for k in want)


@pytest.mark.parametrize('n', [1, 3])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_norm_of_each_picture(n, layout):
    x, w = torch.randn(2, n, 5, 7, 6)
    def grads(f, x):
        x = x.detach().requires_grad_()
        y = f(x)
        return y.detach(), torch.autograd.grad(y, x, w)[0]
    for a,b in zip(grads(InstanceNorm(5), x.to(memory_format=layout)), grads(lambda o: F.group_norm(o, 5), x)):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
