"Weights that come with the course: small, whole, loaded offline, and as good as their cards say"
import json, re, subprocess
from pathlib import Path
import pytest
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from course_lib.core import CourseError
from course_lib.kept_weights import kept, kept_file, kept_trainings, load_network, measure_kept, save_weights, weights_digest
from course_lib.models import small_vgg

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
def test_commit_is_there(name):
    "The commit that a card names is in the history, where there is one"
    git = lambda *args: subprocess.run(['git', *args], cwd=Path(__file__).parent, capture_output=True, text=True)
    if git('rev-parse', '--is-shallow-repository').stdout.strip() != 'false': pytest.skip('no history here')
    commit = re.search(r'commit ([0-9a-f]{7,})', kept_file(name).with_suffix('.md').read_text(encoding='utf-8'))[1]
    assert git('merge-base', '--is-ancestor', commit, 'HEAD').returncode == 0


@each_kept
def test_figures_again(name):
    "Measured again, the figures are those of the card: within a twentieth, or .02 of a share"
    net, about = kept(name)
    got = measure_kept(name, net)
    assert len(got) >= 1
    for k,v in got.items(): assert abs(v-about.figures[k]) <= max(.05*abs(about.figures[k]), .02), (k, v, about.figures[k])


def test_no_such_weights():
    with pytest.raises(CourseError, match='no such weights come with the course'): kept('07_unicorns')


def saved(path, bits, spoil=lambda t: None):
    "A small judge, saved with so many bits; `spoil` may change its weights on the way, and the checksum is right all the same"
    net, cfg = small_vgg(dict(nf='4 8')), dict(nf='4 8')
    save_weights(path, net, cfg, 'small_vgg', bits=bits)
    with safe_open(str(path), 'pt') as f: about, tensors = json.loads(f.metadata()['course_lib']), {k: f.get_tensor(k) for k in f.keys()}
    spoil(tensors)
    about['sha256'] = weights_digest(tensors)
    path.write_bytes(safetensors_bytes(tensors, {'course_lib': json.dumps(about)}))
    return net


@pytest.mark.parametrize('bits, share, error', [(32, 1, 0), (16, .65, 1e-3), (8, .5, 1/250)])
def test_fewer_bits(tmp_path, bits, share, error):
    "A smaller file, and each number of a filter within half a step of it"
    net = saved(tmp_path/'a.safetensors', bits)
    saved(tmp_path/'whole.safetensors', 32)
    size = lambda o: (tmp_path/f'{o}.safetensors').stat().st_size
    assert size('a') <= share*size('whole')+1000
    got = load_network(tmp_path/'a.safetensors')[0].state_dict()
    for k,v in net.state_dict().items():
        most = v.flatten(1).abs().amax(1).view(-1, *[1]*(v.ndim-1)) if v.ndim > 1 else v.abs()
        assert got[k].dtype == v.dtype and ((got[k].cpu()-v).abs() <= error*most+1e-6).all(), k


@pytest.mark.parametrize('number', [float('nan'), float('inf')])
def test_not_finite(tmp_path, number):
    "Weights that are no numbers are refused, whatever their checksum says"
    saved(tmp_path/'a.safetensors', 16, lambda t: t['0.weight'].view(-1)[:1].fill_(number))
    with pytest.raises(CourseError, match='a.safetensors: damaged: .*not finite'): load_network(tmp_path/'a.safetensors')
