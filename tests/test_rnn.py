"What lesson 09's module promises: segments that join, states that are kept and forgotten, pointing that never looks ahead"
import pytest, torch
from torch import nn
from fastai.text.data import LMDataLoader
from course_lib import pointer
from course_lib.core import CourseError
from course_lib.data import get_data
from course_lib.pointer import (Dropout, PointerLM, TiedLM, count_on, counted_right, number_places, point_back, spoken_numbers, text_places,
    thousands_right)
from course_lib.rnn import (Model0, Model1, Model2, Model3, Model4, Model5, Segments, guesses, kept_state, make_vocab, number_dls, number_ids,
    number_tokens, numericalize, read_numbers, textify, words_learner)

nv, nh = 31, 16
stateful = {o.__name__: o for o in (Model3, Model4, Model5, TiedLM, PointerLM)}
each = pytest.mark.parametrize('name', stateful)


def scores(model, x):
    res = model(x)
    return res[0] if isinstance(res, tuple) else res


def small(name, seed=1):
    "A model whose output layer is not at its zero start, in evaluation mode"
    torch.manual_seed(seed)
    model = stateful[name](nv, nh)
    if name == 'Model3': nn.init.normal_(model.h_o.weight)
    return model.eval()


@pytest.fixture
def x(): return torch.randint(nv, (4, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope='module')
def texts(): return number_ids(get_data('human_numbers', 'sample'))


def test_texts(texts):
    train, valid, vocab, lines = texts
    assert (len(train), len(valid), len(vocab), len(lines)) == (50_079, 13_017, nv, 1999)
    assert textify(valid[:5], vocab) == 'xxbos eight thousand one ,' and valid.max() < nv


def test_held_out(texts):
    "What a model is chosen on is not what it is reported on, and not what it was trained on"
    low, high, vocab, lines = number_ids(get_data('human_numbers', 'sample'), hold_out=True)
    assert vocab == texts[2] and lines[0] == 'seven thousand one' and lines[-1] == 'seven thousand nine hundred ninety nine'
    assert textify(low[-3:], vocab) == ', seven thousand' and len(low) + len(high) == len(texts[0]) # one more xxbos, one comma less


@pytest.mark.parametrize('text,match', [(None, 'there is no such file'), ('', 'empty'), ('\n \n', 'empty')])
def test_unreadable(tmp_path, text, match):
    if text is not None: (tmp_path/'train.txt').write_text(text)
    with pytest.raises(CourseError, match=match): read_numbers(tmp_path, 'train')


@pytest.mark.parametrize('n,bs,bptt', [(1000, 7, 20), (141, 7, 20), (142, 7, 20), (30, 7, 20), (1000, 64, 3), (1000, 1, 1)])
def test_segments_join(n, bs, bptt):
    "All rows, read on from batch to batch, are the text; the target is the next word; as fastai's loader has it"
    ids = torch.arange(n)
    seg = Segments(ids, bs, bptt)
    xs, ys = zip(*(seg[i] for i in range(len(seg))))
    assert torch.equal(torch.cat(xs, 1).flatten(), ids[:(n-1)//bs*bs]) and torch.equal(torch.cat(ys, 1), torch.cat(xs, 1)+1)
    assert max(o.shape[1] for o in xs) <= bptt and len(xs) == -(-((n-1)//bs)//bptt)
    theirs = [o[0] for o in LMDataLoader([ids], bs=bs, seq_len=bptt)]
    assert len(theirs) == len(xs) and all(torch.equal(a, torch.as_tensor(b).cpu()) for a,b in zip(xs, theirs))


def test_moving_cuts():
    "New cuts each time the loader starts, the same words"
    torch.manual_seed(0)
    dls = number_dls(torch.arange(2000), torch.arange(500), bs=4, bptt=50, jitter=20)
    epochs = [[x.shape[1] for x,_ in dls.train] for _ in range(5)]
    assert len({tuple(o) for o in epochs}) > 1 and {sum(o) for o in epochs} == {499} and min(map(min, epochs)) > 0
    assert {tuple(x.shape[1] for x,_ in dls.valid) for _ in range(3)} == {(50, 50, 24)}


@pytest.mark.parametrize('kw,match', [(dict(bs=64, bptt=20), 'do not fill 64 segments'), (dict(bs=2, bptt=20, jitter=10), 'less than half'),
    (dict(bs=2, bptt=20, jitter=-1), 'less than half')])
def test_wrong_segments(kw, match):
    with pytest.raises(CourseError, match=match): Segments(torch.arange(100), **kw)


def test_own_targets():
    seg = Segments(torch.arange(100), 4, 10, targets=torch.arange(100)*2)
    assert all(torch.equal(y, 2*x) for x,y in (seg[i] for i in range(len(seg)))) and seg.x.numel() == 100


@pytest.mark.parametrize('model,shape', [(Model0, (4, nv)), (Model1, (4, nv)), (Model2, (4, 3, nv))])
def test_short_models(model, shape, x):
    "Shapes; and at the start of models 0 and 1 every row says the same, whatever it read"
    torch.manual_seed(0)
    res = model(nv, nh)(x[:,:3])
    assert res.shape == shape and torch.equal(res, res[:1].expand_as(res)) == (model is not Model2)


@each
def test_state_is_kept(name, x):
    "Two halves of a text give what the whole gives; after a reset the first half gives what it gave"
    model = small(name)
    with torch.no_grad():
        whole = scores(model, x); model.reset()
        a, b = scores(model, x[:,:5]), scores(model, x[:,5:])
        assert torch.allclose(torch.cat([a, b], 1), whole, atol=1e-4)
        again = scores(model, x[:,:5])
        assert not torch.allclose(again, a, atol=1e-4), 'without a reset it remembers'
        model.reset()
        assert torch.allclose(scores(model, x[:,:5]), a, atol=1e-5)


@each
def test_any_batch_size(name, x):
    "Another batch size starts from nothing, rather than failing or reading someone else's state"
    model = small(name)
    with torch.no_grad():
        scores(model, x)
        got = scores(model, x[:2]); model.reset()
        assert torch.allclose(got, scores(model, x[:2]), atol=1e-5)


@each
def test_no_look_ahead(name, x):
    model, other = small(name), x.clone()
    other[:,7:] = (other[:,7:]+1) % nv
    with torch.no_grad():
        a = scores(model, x); model.reset()
        b = scores(model, other)
    assert torch.allclose(a[:,:7], b[:,:7], atol=1e-5) and not torch.allclose(a[:,7:], b[:,7:], atol=1e-3)


@each
def test_gradient_ends_at_the_batch(name, x):
    "Two steps of training with a kept state: no `backward through the graph a second time`"
    model = small(name).train()
    opt = torch.optim.SGD(model.parameters(), lr=.1)
    for _ in range(2):
        opt.zero_grad()
        scores(model, x).square().mean().backward()
        opt.step()
    assert all(p.grad is not None for k,p in model.named_parameters() if not k.startswith('bn'))


def test_state_follows():
    assert kept_state(None, torch.zeros(3, 5)) is None and kept_state(torch.zeros(2, 4, 8), torch.zeros(3, 5)) is None
    h, c = kept_state((torch.ones(2, 3, 8), torch.zeros(2, 3, 8)), torch.zeros(3, 5))
    assert h.sum() == 48 and c.sum() == 0


def test_dropout():
    torch.manual_seed(0)
    x = torch.ones(100, 100)
    out = Dropout(.25)(x)
    assert sorted(out.unique().tolist()) == pytest.approx([0, 1/.75]) and out.mean() == pytest.approx(1, abs=.05)
    assert torch.equal(Dropout(0.)(x), x) and torch.equal(Dropout(.9).eval()(x), x)
    for p in (-.1, 1., 2):
        with pytest.raises(CourseError, match='expected 0 or more'): Dropout(p)


def test_tied():
    model = TiedLM(nv, nh)
    assert model.h_o.weight is model.i_h.weight and len([k for k,_ in model.named_parameters() if 'weight' in k and 'rnn' not in k]) == 1


def test_point_back():
    "Attention sums to one where there is something to look at; it reaches `memory` words back and no further"
    torch.manual_seed(0)
    M, T = 5, 9
    words = torch.cat([torch.full((2, M), -1), torch.randint(nv, (2, T))], 1)
    said, a = point_back(torch.randn(2, T, 4), torch.randn(2, M+T, 4), words, nv)
    assert torch.allclose(said.sum(-1), torch.tensor([0.] + [1.]*(T-1)).expand(2, T), atol=1e-5) and torch.allclose(a.sum(-1), said.sum(-1), atol=1e-5)
    for t in range(T):
        seen = a[0,t].nonzero().flatten().tolist()
        assert seen == list(range(max(M, t), t+M)), (t, seen) # from M (the first word) to the one before, at most M of them
        assert set(said[0,t].nonzero().flatten().tolist()) <= set(words[0, M:M+t+1].tolist())


def test_pointer_repeats():
    "What it says where it only points is a word that it has read"
    model = small('PointerLM')
    nn.init.constant_(model.g.bias, -1e4)
    x = torch.tensor([[3, 4, 3, 4, 3]])
    with torch.no_grad(): p, _, g = model.look(x)
    assert g[0,0] == 1 and (g[0,1:] == 0).all() and torch.allclose(p.sum(-1), torch.ones(1, 5), atol=1e-5)
    assert set(p[0,-1].nonzero().flatten().tolist()) <= {3, 4}


@pytest.mark.parametrize('text,places', [('one', 'ones'), ('twelve', 'ones'), ('ninety', 'tens'), ('forty two', 'tens ones'),
    ('six hundred', 'hundreds hundred'), ('two thousand sixty', 'thousands thousand tens'),
    ('two thousand three hundred one', 'thousands thousand hundreds hundred ones')])
def test_places(text, places): assert number_places(text) == places.split()


def test_text_places():
    lines = ['one', 'two hundred', 'six thousand']
    assert len(text_places(lines)) == len(number_tokens(lines))
    assert text_places(lines) == 'start ones comma hundreds hundred comma thousands thousand'.split()


class Counting(nn.Module):
    "A model that knows the numbers by heart: it says what comes after the number it reads"
    def __init__(self, vocab):
        super().__init__()
        self.vocab, self.w = vocab, nn.Parameter(torch.zeros(1))
        self.reset()
    def reset(self): self.read = []
    def forward(self, x):
        res = []
        for w in x[0].tolist():
            self.read.append(self.vocab[w])
            *done, tail = ' '.join(self.read).split(',')
            last = spoken_numbers(done[-1].strip())[0] if done else 0
            want = f'{pointer.number_words(last+1)} ,'.split()
            res.append(want[len(tail.split())] if len(tail.split()) < len(want) else ',')
        return torch.nn.functional.one_hot(numericalize(res, self.vocab), len(self.vocab))[None].float()


def test_counting(texts):
    "A model that counts is found to count, to the end; the prompt's words are checked"
    vocab = texts[2]
    model = Counting(vocab)
    assert count_on(model, vocab, 'two , three ,', 4) == 'four , five ,'
    assert counted_right(model, vocab, 8_998, n=5) == 5
    with pytest.raises(CourseError, match="'million' is no word"): count_on(model, vocab, 'one million', 3)
    with pytest.raises(CourseError, match='prompt is empty'): count_on(model, vocab, ' ', 3)


def test_not_counting(texts): assert counted_right(small('Model5'), texts[2], 500, n=3) == 0


def test_spoken_numbers(): assert spoken_numbers('nine thousand , thousand nine , ninety nine') == [9000, None, 99]


def test_guesses_and_thousands(texts):
    _, valid, vocab, lines = texts
    model = small('Model4')
    x, y, p = guesses(model, valid, 64, 20)
    assert x.shape == y.shape == p.shape == (64, 203) and torch.equal(y[:,:-1], x[:,1:])
    class Eight(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.zeros(1))
        def forward(self, x): return nn.functional.one_hot(torch.full_like(x, vocab.index('eight')), nv).float()
    assert thousands_right(Eight(), valid, lines, 64, 20) == pytest.approx(.5, abs=.01)


def test_it_learns(texts):
    "Two epochs of the pointing model on the lesson's text are far better than the most frequent word"
    torch.manual_seed(0)
    train, valid, vocab, _ = texts
    learn = words_learner(number_dls(train, valid, 64, 20), PointerLM(len(vocab), 32))
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, 1e-2)
    x, y, p = guesses(learn.model, valid, 64, 20)
    assert learn.recorder.values[-1][-1] == pytest.approx((p == y).float().mean().item(), abs=1e-6) and (p == y).float().mean() > .4


def test_vocab():
    assert make_vocab(['b', 'a', 'b']) == ['b', 'a'] and numericalize(['a', 'b'], ['b', 'a']).tolist() == [1, 0]
    with pytest.raises(CourseError, match="'c' is no word"): numericalize(['a', 'c'], ['b', 'a'])
