"What lesson 06's modules promise: rooms, lists, sizes, the loop, checkpoints, measurements"
import json
from copy import deepcopy
from pathlib import Path
import numpy as np, pytest, torch
from PIL import Image
from torch import nn
from course_lib.samples import bedrooms
from course_lib.samples.bedrooms import Room, bedroom, make_bedrooms
from course_lib.core import AttrDict, CourseError, lesson_settings, runs_home
from course_lib.data import count_files, get_data, list_files
from course_lib import wgan
from course_lib.checkpoints import load_checkpoint, save_checkpoint
from course_lib.metrics import (closest_pairs, corrupted, corruptions, kernel_distance, nearest_pictures, net_features, normal_pictures, set_metrics,
    set_spread, to_bytes, to_unit, train_feature_net)
from course_lib.wgan import (DCGAN_D, DCGAN_G, WGAN, bedroom_tensors, fit_wgan, generate, generator_sizes, halvings, listed_pictures, make_pair, noise,
    open_square, train, wgan_critic_step, wgan_gen_step, wgan_state)

small = dict(sz=16, nz=4, nf_gen=4, nf_critic=4, n_extra=0, bs=8, n_critic=2, long_critic=3, long_steps=1, long_every=4, epochs=1, epochs_low=1,
    held=100, judge_steps=4, fraction=.1, clamp=.05, lr=1e-3, lr_low=1e-4)


@pytest.fixture
def cfg(): return lesson_settings('06', 'sample', **small)


@pytest.fixture
def x(): return torch.randint(0, 256, (30, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def run(cfg, x):
    torch.manual_seed(0)
    return WGAN(*make_pair(cfg), x, cfg, seed=3)


def weights(run): return [p.clone() for m in (run.gen, run.critic) for p in m.state_dict().values()]
def same(a, b): return all(torch.equal(p, q) for p,q in zip(a, b))
def save(run, file): save_checkpoint(file, *wgan_state(run))
def load(run, file): load_checkpoint(file, *wgan_state(run)); return run


def test_rooms_differ_and_repeat():
    a, b = np.asarray(bedroom([42, 7], 64)), np.asarray(bedroom([42, 8], 64))
    assert (a == np.asarray(bedroom([42, 7], 64))).all() and (a != b).any() and a.shape == (64, 64, 3)


@pytest.mark.parametrize('size', [0, 15, 257])
def test_room_sizes(size):
    with pytest.raises(CourseError, match='16 to 256 pixels'): bedroom(0, size)


def test_the_bed_is_where_the_plan_says():
    "The blanket's colour lies where the middle of the bed is projected to"
    for i in range(20):
        r = Room(i, 64)
        for paint in (bedrooms._paint_shell, bedrooms._paint_bed): paint(r)
        u, v = (int(o) for o in r.at(r.bed.x, r.bed.high+.05, r.d-r.bed.long+.4))
        assert r.img.getpixel((u, v)) == r.blanket


def test_room_sample_layout(tmp_path):
    make_bedrooms(tmp_path, n=3)
    assert count_files(tmp_path, {'files.csv': 3, 'bedroom/*/*.png': 3}) == {'files.csv': 3, 'bedroom/*/*.png': 3}


def test_a_list_is_made_once(tmp_path):
    for n in ('b', 'a'): (tmp_path/n).mkdir(); (tmp_path/n/'x.jpg').touch()
    f = list_files(tmp_path, '**/*.jpg')
    made = f.stat().st_mtime_ns
    (tmp_path/'a'/'y.jpg').touch()
    assert list_files(tmp_path, '**/*.jpg').stat().st_mtime_ns == made and f.read_text().split() == ['a/x.jpg', 'b/x.jpg']
    f.unlink()
    assert len(list_files(tmp_path, '**/*.jpg').read_text().split()) == 3


def test_fraction_of_a_list():
    path = get_data('bedrooms', 'sample')
    some, more = listed_pictures(path, .1, 1), listed_pictures(path, .2, 1)
    assert len(some) == 300 and some == more[:300] and len(set(more)) == 600 and all(o.exists() for o in some)
    assert some != listed_pictures(path, .1, 2)
    with pytest.raises(CourseError, match='is none'): listed_pictures(path, .0001)


def test_no_list(tmp_path):
    with pytest.raises(FileNotFoundError): listed_pictures(tmp_path)


def test_photographs_are_cut_not_squeezed(tmp_path):
    im = Image.new('RGB', (300, 200))
    im.paste((250, 250, 250), (50, 0, 250, 200))
    im.save(tmp_path/'a.jpg')
    a = np.asarray(open_square(tmp_path/'a.jpg'))
    assert a.shape[0] == a.shape[1] and a.shape[0] >= 100 and a.mean() > 245


def test_grey_and_transparent_pictures(tmp_path):
    Image.new('L', (20, 30), 99).save(tmp_path/'g.png')
    Image.new('RGBA', (20, 30), (1, 2, 3, 0)).save(tmp_path/'t.png')
    assert {open_square(tmp_path/o).mode for o in ('g.png', 't.png')} == {'RGB'}


def test_too_few_for_judging(cfg):
    with pytest.raises(CourseError, match='held = 200 are kept'): bedroom_tensors(AttrDict(cfg, held=200))


def test_no_picture_on_both_sides(cfg):
    x, held = bedroom_tensors(cfg)
    assert len(x) == 200 and len(held) == 100
    assert not {o.numpy().tobytes() for o in x} & {o.numpy().tobytes() for o in held}


def test_bytes_there_and_back():
    b = torch.arange(256, dtype=torch.uint8)
    assert to_bytes(to_unit(b)).tolist() == b.tolist() and to_unit(b)[[0, 255]].tolist() == [-1, 1]
    assert to_bytes(torch.tensor([-9., 9.])).tolist() == [0, 255]


@pytest.mark.parametrize('sz', [-16, 0, 1, 8, 24, 48, 63, 80])
def test_sizes_that_cannot_be_halved(sz):
    for f in (halvings, lambda o: DCGAN_D(o, 3, 4), lambda o: DCGAN_G(o, 4, 3, 4)):
        with pytest.raises(CourseError, match='Expected 16, 32, 64'): f(sz)


@pytest.mark.parametrize('sz', [16, 32, 64, 128])
@pytest.mark.parametrize('extra', [0, 2])
def test_sizes_that_can(sz, extra):
    with torch.no_grad():
        y = DCGAN_G(sz, 5, 3, 2, extra)(torch.randn(2, 5, 1, 1))
        assert y.shape == (2, 3, sz, sz) and y.abs().max() <= 1
        assert DCGAN_D(sz, 3, 2, extra)(y).shape == (2,)


def test_extra_layers_are_there():
    convs = lambda m: sum(isinstance(o, (nn.Conv2d, nn.ConvTranspose2d)) for o in m.modules())
    assert convs(DCGAN_D(32, 3, 4, 3)) == convs(DCGAN_D(32, 3, 4)) + 3
    assert convs(DCGAN_G(32, 4, 3, 4, 3)) == convs(DCGAN_G(32, 4, 3, 4)) + 3


def test_gap_is_negative_for_a_critic_that_can_tell(cfg):
    "Bright against dark: after some steps real pictures have the lower scores, and the generator's step lowers the fakes'"
    torch.manual_seed(0)
    gen, critic = make_pair(cfg)
    opt, real = torch.optim.RMSprop(critic.parameters(), 1e-3), torch.ones(8, 3, 16, 16)*.9
    gaps = [wgan_critic_step(gen, critic, opt, real, noise(8, 4), .05).item() for _ in range(15)]
    assert gaps[-1] < 0 and gaps[-1] < gaps[0]
    opt_g, z = torch.optim.RMSprop(gen.parameters(), 1e-3), noise(8, 4)
    scores = [wgan_gen_step(gen, critic, opt_g, z).item() for _ in range(10)]
    assert scores[-1] < scores[0]


def test_clamp_holds_after_each_step(run):
    for _ in range(7):
        run.step()
        assert max(p.abs().max().item() for p in run.critic.parameters()) <= run.cfg.clamp + 1e-6


def test_generator_untouched_by_the_critics_step(run):
    before = [p.clone() for p in run.gen.parameters()]
    wgan_critic_step(run.gen, run.critic, run.opt_c, run.next_real(), noise(8, 4))
    assert same(before, run.gen.parameters())


def test_unequal_batches(run):
    with pytest.raises(CourseError, match='8 real pictures and 7 noises'):
        wgan_critic_step(run.gen, run.critic, run.opt_c, run.next_real(), noise(7, 4))


def test_every_picture_once_an_epoch(run):
    seen = []
    for _ in range(4):
        i = run.at
        seen += run.order[i:i+8].tolist()
        run.next_real()
    assert sorted(seen) == list(range(30))


def test_turns(run):
    "A long turn first, then short ones, and a long one at every fourth"
    lens, n = [], 0
    while len(lens) < 9:
        before = run.gen_steps
        run.step(); n += 1
        if run.gen_steps > before: lens.append(n); n = 0
    assert lens == [3, 2, 2, 2, 3, 2, 2, 2, 3]


def test_resume_at_every_step(cfg, x, tmp_path):
    "Stopped after any step of two epochs and taken up by another object: the same weights three steps later"
    for stop in (1, 3, 4, 5, 8):
        torch.manual_seed(0); a = WGAN(*make_pair(cfg), x, cfg, seed=3)
        for _ in range(stop): a.step()
        save(a, tmp_path/'run.pth')
        torch.manual_seed(9); b = load(WGAN(*make_pair(cfg), x, cfg, seed=8), tmp_path/'run.pth')
        for o in (a, b):
            for _ in range(3): o.step()
        assert same(weights(a), weights(b)) and a.history == b.history and len(a.film) == len(b.film)


def test_without_the_random_generator_it_would_not_resume(cfg, x, tmp_path):
    "The test above can fail"
    a = WGAN(*make_pair(cfg), x, cfg, seed=3)
    for _ in range(3): a.step()
    save(a, tmp_path/'run.pth')
    b = load(WGAN(*make_pair(cfg), x, cfg, seed=8), tmp_path/'run.pth')
    b.rng.manual_seed(1)
    for o in (a, b):
        for _ in range(3): o.step()
    assert not same(weights(a), weights(b))


def test_lower_rate_survives(run, cfg, x, tmp_path):
    fit_wgan(run, 1, 1e-5, quiet=True)
    save(run, tmp_path/'run.pth')
    again = load(WGAN(*make_pair(cfg), x, cfg), tmp_path/'run.pth')
    assert [o.param_groups[0]['lr'] for o in (again.opt_g, again.opt_c)] == [1e-5, 1e-5]


def test_a_half_epoch_is_finished(run):
    for _ in range(2): run.step()
    fit_wgan(run, 1, quiet=True)
    assert (run.epoch, run.at) == (1, 0) and len(run.film) == 1


def test_bad_checkpoints(run, cfg, x, tmp_path):
    f = tmp_path/'run.pth'
    with pytest.raises(CourseError, match='there is no checkpoint'): load(run, f)
    save(run, f)
    with pytest.raises(CourseError, match=r'pictures = 30 \(now 20\)'): load(WGAN(*make_pair(cfg), x[:20], cfg), f)
    wide = AttrDict(cfg, nf_gen=8)
    with pytest.raises(CourseError, match=r'nf_gen = 4 \(now 8\)'): load(WGAN(*make_pair(wide), x, wide), f)
    with pytest.raises(CourseError, match='does not fit any more'): load(WGAN(*make_pair(wide), x, cfg), f)
    f.write_bytes(f.read_bytes()[:500])
    with pytest.raises(CourseError, match='not a checkpoint that can be read'): load(run, f)


@pytest.mark.parametrize('changed', [dict(lr=2e-3), dict(clamp=.01), dict(bs=4), dict(n_critic=1), dict(dataset='mnist'), dict(fraction=.2)])
def test_checkpoint_of_other_settings(run, cfg, x, tmp_path, changed):
    "Settings that no weight's shape tells are compared, and a refused file changes nothing"
    save(run, tmp_path/'run.pth')
    other = AttrDict(cfg, **changed)
    new = WGAN(*make_pair(other), x, other)
    before = weights(new)
    (k, v), = changed.items()
    with pytest.raises(CourseError, match=rf'{k} = {cfg[k]} \(now {v}\)'): load(new, tmp_path/'run.pth')
    assert same(before, weights(new)) and (new.epoch, new.at) == (0, 0)


def test_checkpoint_of_another_optimiser(run, cfg, x, tmp_path):
    save(run, tmp_path/'run.pth')
    with pytest.raises(CourseError, match=r'optimiser = RMSprop \(now Adam\)'): load(WGAN(*make_pair(cfg), x, cfg, opt=torch.optim.Adam), tmp_path/'run.pth')
    with pytest.raises(CourseError, match='penalty = False'): load(WGAN(*make_pair(cfg), x, cfg, penalty=wgan.wgan_gap), tmp_path/'run.pth')


def test_half_a_checkpoint_is_none(run, cfg, x, tmp_path):
    "Where the second network does not fit, the first is not taken either"
    save(run, tmp_path/'run.pth')
    s = torch.load(tmp_path/'run.pth', weights_only=True)
    s['parts']['opt_c']['param_groups'][0]['params'].pop()
    torch.save(s, tmp_path/'run.pth')
    new = WGAN(*make_pair(cfg), x, cfg)
    before = weights(new)
    with pytest.raises(CourseError, match='does not fit'): load(new, tmp_path/'run.pth')
    assert same(before, weights(new)) and new.epoch == 0


def test_nan_stops_and_spares_the_checkpoint(run, x, tmp_path):
    "A weight that is no number stops the run within a turn, and no such run is written over a good one"
    f = tmp_path/'run.pth'
    save(run, f)
    good = f.read_bytes()
    next(run.gen.parameters()).data.fill_(torch.nan)
    with pytest.raises(CourseError, match='the training has failed') as e: fit_wgan(run, 1, quiet=True)
    assert '\n' not in str(e.value) and len(run.history) == 1
    with pytest.raises(CourseError, match='the training has failed'): save(run, f)
    assert f.read_bytes() == good and [o.name for o in tmp_path.iterdir() if o.is_file()] == ['run.pth']


def test_train_writes_no_nan(cfg, monkeypatch):
    "The last good checkpoint and the generator of an earlier run stay, whatever becomes NaN in which step"
    train(cfg)
    files = [runs_home()/'models'/o for o in ('06_wgan_bedrooms.pth', '06_wgan_bedrooms-sample-run.pth')]
    step, steps = WGAN.step, []
    def burn(self):
        step(self)
        steps.append(1)
        if len(steps) == 30: next(self.critic.parameters()).data.fill_(torch.nan) # in the second epoch of 25 steps
    monkeypatch.setattr(WGAN, 'step', burn)
    old = files[0].read_bytes()
    with pytest.raises(CourseError, match='the training has failed'): train(cfg)
    assert files[0].read_bytes() == old
    again = load(WGAN(*make_pair(cfg), bedroom_tensors(cfg)[0], cfg), files[1])
    assert again.epoch == 1 and all(p.isfinite().all() for p in weights(again))
    with pytest.raises(CourseError, match='the training has failed'): save_checkpoint(files[0], dict(gen=gen_of_nan(cfg)), generator_sizes(cfg))
    assert files[0].read_bytes() == old


def gen_of_nan(cfg):
    gen, _ = make_pair(cfg)
    next(gen.parameters()).data.fill_(torch.nan)
    return gen


def test_a_failed_save_leaves_the_old(run, tmp_path, monkeypatch):
    f = tmp_path/'run.pth'
    save(run, f)
    old = f.read_bytes()
    def full(*a, **k): raise OSError('no space left')
    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(OSError): save(run, f)
    assert f.read_bytes() == old and [o.name for o in tmp_path.iterdir() if o.is_file()] == ['run.pth']


def test_train_goes_on_after_a_kill(cfg, monkeypatch):
    "Stopped by force after its first epoch, `train` begins with the second, and ends with the same weights as one that ran through"
    whole = train(cfg)
    calls = []
    def die(run, *args):
        if calls: raise KeyboardInterrupt
        calls.append(1)
        fit_wgan(run, *args, quiet=True)
    monkeypatch.setattr(wgan, 'fit_wgan', die)
    with pytest.raises(KeyboardInterrupt): train(cfg)
    monkeypatch.setattr(wgan, 'fit_wgan', fit_wgan)
    again = train(cfg)
    assert again.epoch == 2 and same(weights(whole), weights(again))
    assert [o.name for o in (runs_home()/'models').iterdir()] == ['06_wgan_bedrooms.pth']


def test_generator_on_disk(cfg, tmp_path):
    (gen, _), (again, _), f = make_pair(cfg), make_pair(cfg), tmp_path/'g.pth'
    z = noise(3, 4)
    save_checkpoint(f, dict(gen=gen), generator_sizes(cfg))
    load_checkpoint(f, dict(gen=again), generator_sizes(cfg))
    assert torch.equal(to_bytes(generate(gen, z)), to_bytes(generate(again, z)))
    assert gen.training, 'generating leaves a generator in the mode that it was in'
    with pytest.raises(CourseError, match=r'nz = 4 \(now 5\)'): load_checkpoint(f, dict(gen=again), dict(generator_sizes(cfg), nz=5))
    f.write_text('hello')
    with pytest.raises(CourseError, match='not a checkpoint that can be read'): load_checkpoint(f, dict(gen=again), generator_sizes(cfg))


def test_corruptions_are_seen(cfg):
    "Every corruption changes the picture, and a trained network names more than by guessing"
    x, held = bedroom_tensors(cfg)
    xb = to_unit(x[:8])
    assert [k for k,f in corruptions.items() if torch.equal(f(xb), xb)] == ['none']
    xb, yb = corrupted(to_unit(held[:80]))
    assert yb.bincount().tolist() == [10]*8
    right = lambda net: (net.head(net(xb)).argmax(1) == yb).float().mean()
    assert right(train_feature_net(x, 60)) > .3 > right(train_feature_net(x, 1))


def test_measures_know_the_ends(cfg):
    "The same pictures, one picture again and again, other rooms, noise: in the right order"
    x, held = bedroom_tensors(cfg)
    net = train_feature_net(x, 60)
    torch.manual_seed(0)
    one = x[:1].expand(100, -1, -1, -1) + torch.zeros_like(x[:100])
    grain = torch.randint_like(x[:100], 256)
    kid = lambda o: kernel_distance(net, held, o)
    assert kid(x[:100]) < kid(normal_pictures(x, 100)) < kid(grain)
    assert set_spread(net_features(net, one), net_features(net, held)) < .01 < .8 < set_spread(net_features(net, x[:100]), net_features(net, held)) < 1.2
    assert set_metrics(net, held, one)['twins'] < .01 and set_metrics(net, held, x[:100])['twins'] > .6


def test_closest_pair():
    a = torch.rand(200, 5, generator=torch.Generator().manual_seed(0))
    a[150] = a[120]
    assert closest_pairs(a)[0][1:] in ((120, 150), (150, 120)) and closest_pairs(a)[0][0] == pytest.approx(0, abs=1e-3)


def test_nearest_over_chunks():
    x = torch.randint(0, 256, (5200, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    d, i = nearest_pictures(x[[3, 4999, 5000, 5199]], x)
    assert i.tolist() == [3, 4999, 5000, 5199] and d.max() < 1e-3


def from_lesson(name):
    "A function of the lesson's page that the package does not have"
    cells = json.loads((Path(__file__).parent.parent/'nbs'/'06_wgan_bedrooms.ipynb').read_text(encoding='utf-8'))['cells']
    ns = {**vars(wgan), 'deepcopy': deepcopy}
    exec(next(c['source'] for c in cells if c['source'].startswith(f'def {name}(')), ns)
    return ns[name]


def test_fresh_critic_tells_near_from_far(cfg):
    "Against real rooms a new critic finds hardly a gap, against an untrained generator a wide one; the generator stays as it is"
    x, _ = bedroom_tensors(cfg)
    class Real(nn.Module): # as good as a generator can be
        def forward(self, z): return to_unit(x[torch.randint(len(x), (len(z),))])
    gen, _ = make_pair(cfg)
    before = [p.clone() for p in gen.state_dict().values()]
    fresh_gap = from_lesson('fresh_gap')
    cfg.judge_steps = 100 # 40 steps of the new critic
    far, near = fresh_gap(gen, x, cfg), fresh_gap(Real(), x, cfg)
    assert far < 0 and abs(near) < .3*abs(far)
    assert same(before, gen.state_dict().values())
