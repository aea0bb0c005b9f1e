"The pages of `make site`: no broken link or picture, nothing from outside, and in a real browser a search that finds, without an error"
import re, subprocess, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote
import pytest

pytest.importorskip('sphinx', reason='the pages need Sphinx: install the extra [site]')
root = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp('site')/'pages'
    res = subprocess.run([sys.executable, root/'site'/'build.py', out], capture_output=True, text=True)
    assert res.returncode == 0, res.stdout[-2000:] + res.stderr[-2000:]
    return out


def test_only_a_folder_of_its_own(tmp_path):
    "A folder with something else in it is refused and left alone"
    (tmp_path/'thesis.tex').touch()
    res = subprocess.run([sys.executable, root/'site'/'build.py', tmp_path], capture_output=True, text=True)
    assert res.returncode and 'holds something else' in res.stderr and (tmp_path/'thesis.tex').exists()


class Page(HTMLParser):
    "What a page links to, what it loads, and its anchors"
    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.ids = [], [], set()
        self.feed(path.read_text(encoding='utf-8'))
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if a.get('id'): self.ids.add(a['id'])
        if tag == 'a' and a.get('href'): self.links.append(a['href'])
        if tag in ('img', 'script', 'iframe', 'source') and a.get('src'): self.loads.append(a['src'])
        if tag == 'link' and a.get('rel') in ('stylesheet', 'icon', 'preload'): self.loads.append(a['href'])


def pages(site): return {p.resolve(): Page(p) for p in site.rglob('*.html') if '_static' not in p.parts}


def test_nothing_from_outside(site):
    found = pages(site)
    assert len(found) > 60
    outside = {(p.name, o) for p,page in found.items() for o in page.loads if re.match(r'(https?:)?//', o)}
    assert not outside


def test_no_broken_link_or_picture(site):
    found, broken = pages(site), set()
    for p,page in found.items():
        for o in [*page.links, *page.loads]:
            if re.match(r'[a-z]+:|//', o): continue
            file, _, anchor = unquote(o).partition('#')
            there = (p.parent/file.split('?')[0]).resolve() if file else p
            if not there.exists() or anchor and there in found and anchor not in found[there].ids: broken.add((p.name, o))
    assert not broken, sorted(broken)[:20]


def test_every_lesson_and_module_has_a_page(site):
    lessons = {p.stem for p in (root/'nbs').glob('[0-9]*.ipynb')}
    assert lessons == {p.stem for p in (site/'nbs').glob('*.html')}
    assert {'unet', 'core', 'samples.streets'} <= {p.stem for p in (site/'api').glob('*.html')}
    assert 'Intersection' in (site/'api'/'unet.html').read_text() or 'IoU' in (site/'api'/'unet.html').read_text()


def test_tables_are_tables(site):
    "Those that a cell prints, too: no page shows the bars and dashes that one is written with"
    text = {p: p.read_text(encoding='utf-8') for p in site.rglob('nbs/**/*.html')}
    assert not [p.name for p,o in text.items() if re.search(r'<p>\||\| ?-{3,} ?\|', re.sub(r'(?s)<pre>.*?</pre>', '', o))]
    lesson = text[site/'nbs'/'05_feature_loss_superres.html']
    assert 'PSNR, dB</p></th>' in lesson and '<th>train_loss</th>' in lesson # ours, and fastai's while it trains


def test_in_a_browser(site, tmp_path):
    from browser import browsing, until # skips where there is none
    with browsing(tmp_path/'profile') as d:
        for o in ('index', 'nbs/00_start_here', 'nbs/08_style_transfer', 'api/metrics'):
            d.get((site/f'{o}.html').as_uri())
            assert not [e for e in d.get_log('browser') if e['level'] == 'SEVERE'], o
        d.get((site/'search.html').as_uri() + '?q=Gram+matrix')
        hits = until(d, lambda: d.find_elements('css selector', '#search-results li a'), 60, 'nothing found')
        assert any('feature_loss' in h.get_attribute('href') or 'style_transfer' in h.get_attribute('href') for h in hits)
