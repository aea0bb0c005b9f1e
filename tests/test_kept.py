"Weights that come with the course: small, whole, loaded offline, and as good as their cards say"
import pytest
from course_lib.core import CourseError
from course_lib.kept_weights import kept, kept_file, kept_trainings, measure_kept

there = [o for o in kept_trainings() if kept_file(o).is_file()]
each_kept = pytest.mark.parametrize('name', there)


def test_small():
    "At most 4 MB a file, and 16 MB together"
    sizes = [o.stat().st_size for o in kept_file('x').parent.glob('*.safetensors')]
    assert sizes and max(sizes) <= 4e6 and sum(sizes) <= 16e6


def test_every_file_is_told():
    "No weights without an entry (those behind `course restore` have a card and tests of their own), and no entry without weights and card"
    assert {o.stem for o in kept_file('x').parent.glob('*.safetensors')} - {'restore'} == set(kept_trainings())
    assert all(kept_file(o).with_suffix('.md').is_file() for o in kept_trainings())


@each_kept
def test_card(name):
    "The card names the file, its checksum, its data, its limits, and the figures that the weights carry"
    about, card = kept(name)[1], kept_file(name).with_suffix('.md').read_text(encoding='utf-8')
    o = kept_trainings()[name]
    for text in (f'`{name}.safetensors`', about.sha256[:16], o.data, o.limits, o.title): assert text in card
    for k,v in about.figures.items(): assert f'| {k} | {v:.4g} |' in card


@each_kept
def test_figures_again(name):
    "Measured again, the figures are those of the card: within a twentieth, or .02 of a share"
    net, about = kept(name)
    got = measure_kept(name, net)
    assert len(got) >= 1
    for k,v in got.items(): assert abs(v-about.figures[k]) <= max(.05*abs(about.figures[k]), .02), (k, v, about.figures[k])


def test_no_such_weights():
    with pytest.raises(CourseError, match='no such weights come with the course'): kept('07_unicorns')
