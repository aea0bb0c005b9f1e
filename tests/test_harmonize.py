"What lesson 08b promises beside its own text: mappings that point into the painting, and an object that does not leave its mask"
import pytest, torch

from course_lib.core import CourseError
from course_lib.harmonize import (carried_to, consistent_places, first_pass, histogram_match, mask_places, nearest_places, paste, second_pass,
    square_variation, tv_weight)
from course_lib.style import loss_network, soft_noise

rand = lambda *sz, seed=0: torch.rand(*sz, generator=torch.Generator().manual_seed(seed))


def disc(n):
    "A mask (1, 1, n, n), 1 in a circle"
    x = (torch.arange(n)+.5)/n - .5
    return (x[:,None]**2 + x**2 < .25).float()[None,None]


@pytest.mark.parametrize('at,high', [((.1, .5), .5), ((.5, .95), .3), ((.5, .5), 1.2)])
def test_paste_sticks_out(at, high):
    with pytest.raises(CourseError, match='sticks out'): paste(rand(1, 3, 40, 40), rand(1, 3, 20, 20), torch.ones(1, 1, 20, 20), at, high)


def test_paste_leaves_the_rest():
    painting = rand(1, 3, 40, 60)
    x, mask = paste(painting, torch.ones(1, 3, 20, 20), disc(20), (.5, .5), .5)
    assert x.shape == painting.shape and mask.shape == (1, 1, 40, 60) and .1 < mask.mean() < .2
    far = torch.ones(40, 60, dtype=torch.bool); far[8:32, 18:42] = False
    assert torch.equal(x[..., far], painting[..., far]) and (x[..., 20, 30] > .99).all()


def test_a_piece_of_the_painting_is_found():
    "What was cut out of the painting and moved maps to where it came from"
    s, where = rand(1, 5, 12, 14), torch.zeros(12, 14, dtype=torch.bool)
    f = torch.roll(s, (2, 3), (2, 3))
    where[4:10, 5:11] = True
    idx = nearest_places(f, s, where.flatten(), chunk=7)
    y, x = where.nonzero(as_tuple=True)
    assert torch.equal(idx, (y-2)*14 + x-3)
    assert torch.equal(consistent_places(idx, where.flatten(), s), idx)


def test_a_stray_place_comes_back():
    "One wrong choice among consistent ones is outvoted"
    s, where = soft_noise((16, 16), 5, 0, 'cpu'), torch.ones(256, dtype=torch.bool)
    idx = torch.arange(256)
    idx[100] = 3
    assert consistent_places(idx, where, s)[100] == 100


def test_carried_stays_inside():
    where_ref, idx = torch.ones(36, dtype=torch.bool), torch.randint(36, (36,), generator=torch.Generator().manual_seed(0))
    for hw in ((6, 6), (12, 12), (24, 24), (3, 3), (13, 11)):
        got = carried_to(idx, where_ref, (6, 6), torch.ones(hw[0]*hw[1], dtype=torch.bool), hw)
        assert len(got) == hw[0]*hw[1] and 0 <= got.min() and got.max() < hw[0]*hw[1]
    fine = carried_to(torch.arange(36), where_ref, (6, 6), torch.ones(144, dtype=torch.bool), (12, 12))
    assert torch.equal(fine, torch.arange(144))


@pytest.mark.parametrize('n,m', [(50, 50), (50, 20), (20, 50), (1, 9)])
def test_histogram(n, m):
    v, like = rand(4, n), rand(4, m, seed=1)
    got = histogram_match(v, like)
    assert got.shape == v.shape and all(set(a.tolist()) <= set(b.tolist()) for a,b in zip(got, like))
    assert (got.gather(1, v.argsort(1)).diff(dim=1) >= 0).all()


def test_places_touch_the_mask():
    mask = torch.zeros(1, 1, 32, 32); mask[..., 9, 17] = 1
    for k in (32, 16, 8, 4): assert mask_places(mask, (k, k)).nonzero().flatten().tolist() == [9*k//32*k + 17*k//32]


def test_tv_weight_falls():
    smooth, rough = torch.full((1, 3, 20, 20), .5), rand(1, 3, 20, 20)
    assert tv_weight(smooth) == pytest.approx(10) and tv_weight(rough) < 1e-6 and tv_weight(smooth, .5) == pytest.approx(5)
    assert square_variation(rough).mean() > .1


def test_two_passes_stay_in_the_mask():
    torch.manual_seed(0)
    painting, obj = soft_noise((48, 48), 5, 0, 'cpu'), rand(1, 3, 24, 24)
    net = loss_network('course', 'auto', painting, torch.device('cpu'))[0]
    pasted, mask = paste(painting, obj, disc(24), (.5, .5), .5)
    x, l1 = first_pass(net, painting, pasted, mask, evals=12)
    y, l2 = second_pass(net, painting, pasted, mask, x, evals=12)
    for o in (x, y): assert torch.allclose(o*(1-mask), painting*(1-mask)) and torch.isfinite(o).all() and not torch.equal(o, pasted)
    assert min(l1) < l1[0] and min(l2) < l2[0]
