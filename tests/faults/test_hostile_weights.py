"Weights and checkpoints that somebody has made to do harm, or that were damaged: a line that names the file, no code run, no network changed"
import json, os, pickle, random, struct
from pathlib import Path
import pytest, torch, torchvision
from torch import nn
from course_lib.checkpoints import Resumable, load_checkpoint, save_checkpoint
from course_lib.core import CourseError
from course_lib.kept_weights import load_network, network_kind, read_weights, save_weights
from course_lib.models import imagenet_weights

pytestmark = pytest.mark.filterwarnings('ignore') # what torch says about old formats


@network_kind
def two_layers(cfg): return nn.Sequential(nn.Linear(cfg['ni'], 8), nn.Linear(8, 2))


@pytest.fixture
def saved(tmp_path): return save_weights(tmp_path/'a.safetensors', two_layers(dict(ni=4)), dict(ni=4), 'two_layers')


def parts_of(path):
    data = path.read_bytes()
    n = struct.unpack('<Q', data[:8])[0]
    return json.loads(data[8:8+n]), data[8+n:]


def refused(f, path, *args):
    with pytest.raises(CourseError) as e: f(path, *args)
    assert str(e.value).isprintable() and Path(path).name in str(e.value) and len(str(e.value)) < 600, str(e.value)


class Bomb:
    "Runs code when it is unpickled"
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.touch, (self.path,)


headers = {
    'numbers that are not there': lambda h: h['0.weight'].update(data_offsets=[0, 10**12]),
    'a size that overflows': lambda h: h['0.weight'].update(shape=[2**40, 2**40]),
    'another shape': lambda h: h['0.weight'].update(shape=[8, 5]),
    'an unknown type': lambda h: h['0.weight'].update(dtype='F7'), 'a hole': lambda h: h.pop('0.weight'),
    'one number twice': lambda h: h.update(twice=h['0.weight']), 'a stranger': lambda h: h.update(more=dict(dtype='F32', shape=[0], data_offsets=[0, 0])),
    'a list of its own': lambda h: h['__metadata__'].update(course_lib='[1]'), 'very deep': lambda h: h['__metadata__'].update(course_lib='['*100_000)}

@pytest.mark.parametrize('what', headers)
def test_header(saved, what):
    head, body = parts_of(saved)
    headers[what](head)
    text = json.dumps(head).encode()
    saved.write_bytes(struct.pack('<Q', len(text)) + text + body)
    refused(load_network, saved)


@pytest.mark.parametrize('n', [2**63-1, 10**9, 0])
def test_length_of_the_header(saved, n):
    saved.write_bytes(struct.pack('<Q', n) + saved.read_bytes()[8:])
    refused(load_network, saved)


@pytest.mark.parametrize('about', [dict(kind=['a']), dict(kind={}), dict(kind=None), dict(kind='os.system'), dict(settings=[]),
    dict(settings='abc'), dict(settings=3), dict(settings={}), dict(settings=dict(ni=None)), dict(settings=dict(ni=-1)),
    dict(settings=dict(ni='4')), dict(settings=dict(ni=10**12)), dict(versions=[1], settings=dict(ni=5)), dict(sha256=3)], ids=str)
def test_what_it_says_of_itself(saved, about):
    "No network, or another one, can be made of it"
    head, body = parts_of(saved)
    head['__metadata__']['course_lib'] = json.dumps({**json.loads(head['__metadata__']['course_lib']), **about})
    text = json.dumps(head).encode()
    saved.write_bytes(struct.pack('<Q', len(text)) + text + body)
    refused(load_network, saved)


def damaged(data, r):
    data = bytearray(data)
    for _ in range(r.randint(1, 3)):
        if not data: break
        at, how = r.randrange(min(len(data), r.choice((16, len(data))))), r.randrange(4)
        if how == 0: data[at] ^= 1 << r.randrange(8)
        elif how == 1: del data[at:at+r.randint(1, 50)]
        elif how == 2: data[at:at] = r.randbytes(r.randint(1, 20))
        elif r.random() < .3: del data[max(1, at):]
    return bytes(data)


def test_damaged_weights(saved):
    "Whatever byte is wrong: refused, or the very numbers that were saved"
    whole, data, r, n = read_weights(saved)[0], saved.read_bytes(), random.Random(0), 0
    for _ in range(300):
        saved.write_bytes(damaged(data, r))
        try: got = read_weights(saved)[0]
        except CourseError as e: n += str(e).isprintable()
        else: assert got.keys() == whole.keys() and all(torch.equal(got[k], v) for k,v in whole.items())
    assert n > 150


def a_run(file, steps=4):
    net = nn.Linear(3, 2)
    return net, Resumable(file, dict(net=net), dict(seed=1), steps, 2)


@pytest.mark.parametrize('state', [lambda s: [], lambda s: dict(s, parts=[1]), lambda s: dict(s, parts=3),
    lambda s: dict(s, own=3), lambda s: dict(s, own=[3]), lambda s: dict(s, own=[]),
    lambda s: dict(s, settings=[1]), lambda s: dict(s, place=3), lambda s: dict(s, parts=dict(net=[1])),
    lambda s: dict(s, parts=dict(net={'weight': 'x', 'bias': None})),
    lambda s: dict(s, parts=dict(net={**s['parts']['net'], 'weight': torch.zeros(9, 9)})), lambda s: dict(s, parts={})])
def test_checkpoint(tmp_path, state):
    "Of another structure: refused, and the network is what it was"
    net, run = a_run(tmp_path/'a.pth')
    for _ in run: pass
    before = [o.clone() for o in net.state_dict().values()]
    torch.save(state(torch.load(run.file, weights_only=True)), run.file)
    refused(lambda f: [*a_run(f)[1]], run.file)
    refused(load_checkpoint, run.file, dict(net=net), dict(seed=1))
    assert all(map(torch.equal, before, net.state_dict().values()))


def test_damaged_checkpoint(tmp_path):
    "Whatever byte is wrong: refused, or the very numbers that were saved; torch itself looks at no checksum"
    net, r, n = nn.Linear(3, 2), random.Random(0), 0
    save_checkpoint(tmp_path/'a.pth', dict(net=net), dict(seed=1), step=2)
    before, data = [o.clone() for o in net.state_dict().values()], (tmp_path/'a.pth').read_bytes()
    for _ in range(200):
        (tmp_path/'a.pth').write_bytes(damaged(data, r))
        try: load_checkpoint(tmp_path/'a.pth', dict(net=net), dict(seed=1))
        except CourseError as e: n += str(e).isprintable() and 'a.pth' in str(e)
        assert all(map(torch.equal, before, net.state_dict().values()))
    assert n > 100


squeezenet = torchvision.models.squeezenet1_1
pretrained = {
    'code': lambda f, ran: torch.save(dict(w=Bomb(ran)), f),
    'old code': lambda f, ran: f.write_bytes(pickle.dumps(Bomb(ran))), 'empty': lambda f, ran: f.write_bytes(b''),
    'half': lambda f, ran: (torch.save(squeezenet().state_dict(), f), os.truncate(f, 10**6)), 'a tensor': lambda f, ran: torch.save(torch.zeros(3), f),
    'another network': lambda f, ran: torch.save(nn.Linear(1, 1).state_dict(), f), 'numbers for names': lambda f, ran: torch.save({3: 4}, f),
    'other shapes': lambda f, ran: torch.save({k: v[..., :1] for k,v in squeezenet().state_dict().items()}, f)}

@pytest.mark.parametrize('what', pretrained)
def test_pretrained(monkeypatch, tmp_path, capsys, what):
    "In the place of ImageNet's weights lies something else: said in a line that names the file, and no advice to read it all the same"
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'torch'))
    file = tmp_path/'torch'/'hub'/'checkpoints'/'squeezenet1_1-b8a52dc0.pth'
    file.parent.mkdir(parents=True)
    pretrained[what](file, tmp_path/'ran')
    assert imagenet_weights('squeezenet1_1', 'auto') is None
    out = capsys.readouterr().out
    assert out.count('\n') == 1 and file.name in out and 'Delete it' in out and 'weights_only' not in out
    with pytest.raises(CourseError, match=file.name): imagenet_weights('squeezenet1_1', 'yes')
    assert not (tmp_path/'ran').exists() and file.exists()


def test_pretrained_that_fit(monkeypatch, tmp_path):
    "The test above would notice a reader that takes nothing"
    monkeypatch.setenv('TORCH_HOME', str(tmp_path/'torch'))
    file = tmp_path/'torch'/'hub'/'checkpoints'/'squeezenet1_1-b8a52dc0.pth'
    file.parent.mkdir(parents=True)
    torch.save(want := squeezenet().state_dict(), file)
    assert all(map(torch.equal, imagenet_weights('squeezenet1_1', 'yes').values(), want.values()))
