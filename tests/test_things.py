"The things that stand in for CIFAR-10: which names, the same picture for the same seed, no two alike, the layout"
import numpy as np, pytest
from course_lib.core import CourseError, registry
from course_lib.data import check_layout
from course_lib.samples.things import draw_thing, make_things, thing_names

pixels = lambda *args: np.asarray(draw_thing(*args))


def test_names():
    "CIFAR-10's ten names in their order, which is that of the folders"
    assert thing_names == 'airplane automobile bird cat deer dog frog horse ship truck'.split() == sorted(thing_names)


@pytest.mark.parametrize('name', ['', 'Cat', 'zebra', None])
def test_unknown_name(name):
    with pytest.raises(CourseError, match='Expected one of airplane'): draw_thing(name)


@pytest.mark.parametrize('name', thing_names)
def test_pictures(name):
    "32×32 bytes in colour, the same for the same seed, and twenty different ones for twenty seeds; none of them empty"
    pics = [pixels(name, [3,i]) for i in range(20)]
    assert all(o.shape == (32,32,3) and o.dtype == np.uint8 and o.std() > 5 for o in pics)
    assert len({o.tobytes() for o in pics}) == 20
    assert (pixels(name, [3,7]) == pics[7]).all()


def test_a_class_is_a_shape():
    "With the same dice, two classes differ"
    assert len({pixels(o, 5).tobytes() for o in thing_names}) == 10


def test_splits_share_no_picture(tmp_path):
    make_things(tmp_path, n_train=6, n_valid=6)
    read = lambda split: {o.read_bytes() for o in (tmp_path/split).rglob('*.png')}
    assert len(read('train')) == len(read('test')) == 60 and not read('train') & read('test')


def test_layout(tmp_path):
    "The registry's layout finds what the maker writes"
    make_things(tmp_path, n_train=2, n_valid=1)
    n = len(thing_names)
    assert check_layout('cifar10', tmp_path, {'train/*/*.png': 2*n, 'test/*/*.png': n}) == 3*n
    assert set(registry()['cifar10'].sample['layout']) == {'train/*/*.png', 'test/*/*.png'}
    with pytest.raises(CourseError): check_layout('cifar10', tmp_path, registry()['cifar10'].sample['layout'])
