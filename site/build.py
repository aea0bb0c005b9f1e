"""Turn the executed notebooks into static pages that work from a file system: `make site`, then open _site/index.html (or
`python site/build.py FOLDER`; pages from before go, and a folder with anything else in it is refused).

Sphinx with MyST-NB and the book theme: it reads notebooks as they are, its search needs no server (the index is a script), and previous, next, dark and light, and pages
for a phone come with the theme. Formulas become MathML, so that nothing is fetched. A module's page is made of its docments by nbdev's `show_doc`.
"""
import ast, json, re, shutil, subprocess, sys, warnings
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote
from docutils.nodes import make_id

root = Path(__file__).resolve().parent.parent
out = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else root/'_site'
src, html = out/'.build'/'src', out/'.build'/'html'
folders = dict(answers='The answers', lib='The machinery', samples='The embedded data', apps='Small programs')


def title(p): return ''.join(json.loads(p.read_text(encoding='utf-8'))['cells'][0]['source']).splitlines()[0].lstrip('# ')


def toc(caption, names, hidden=True):
    return '\n'.join(['```{toctree}', ':maxdepth: 1', f':caption: {caption}', *[':hidden:']*hidden, '', *names, '```', ''])


def api_page(name):
    "A module's names, their parameters and what they are for, in markdown"
    from nbdev.showdoc import show_doc
    mod = import_module(f'course_lib.{name}')
    parts = [f'# course_lib.{name}', mod.__doc__ or '']
    for o in mod.__all__:
        thing = getattr(mod, o)
        if callable(thing): parts.append(show_doc(thing, title_level=2)._repr_markdown_())
    return re.sub(r'---\n\n\[source\].*\n', '', '\n\n'.join(parts))


def without_folders(path):
    "A text whose links to folders are plain words: in a page there is nothing behind them"
    is_file = lambda m: m[0] if re.match(r'https?:|#', m[2]) or (path.parent/m[2].split('#')[0]).is_file() else m[1]
    return re.sub(r'(?<!!)\[([^\]]*)\]\(([^)]*)\)', is_file, path.read_text(encoding='utf-8'))


def imports_alone(text):
    try: found = ast.parse(text).body
    except SyntaxError: return False # a line of the notebook's own, with % or !
    return found and all(isinstance(o, (ast.Import, ast.ImportFrom)) for o in found)


def prepare(path):
    "A figure's alternative text goes where MyST-NB looks for it; what nbdev hides is hidden, and imports are folded"
    nb = json.loads(path.read_text(encoding='utf-8'))
    for c in nb['cells']:
        text = ''.join(c['source'])
        if re.match(r'#\| (hide|default_exp)', text): c['metadata']['tags'] = ['remove-input' if c.get('outputs') else 'remove-cell']
        elif c['cell_type'] == 'code' and imports_alone(text): c['metadata']['tags'] = ['hide-input']
        alts = [m['alt'] for o in c.get('outputs', []) for m in o.get('metadata', {}).values() if 'alt' in m]
        if alts: c['metadata']['mystnb'] = dict(image=dict(alt='; '.join(alts)))
    path.write_text(json.dumps(nb, ensure_ascii=False), encoding='utf-8')


def gather():
    "The sources in one folder, laid out as in the clone, so that the links between them hold"
    if out.exists() and any(out.iterdir()) and not {'.build', 'objects.inv'} & {o.name for o in out.iterdir()}:
        sys.exit(f'{out}: expected a folder that is new, empty or a site of before; this one holds something else')
    shutil.rmtree(out, ignore_errors=True)
    (src/'api').mkdir(parents=True)
    (src/'_static').mkdir()
    shutil.copy(root/'site'/'course.css', src/'_static')
    for o in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'SECURITY.md', 'LICENSE', 'settings.ini'): (src/o).write_text(without_folders(root/o), encoding='utf-8')
    for o in ('nbs', 'results', 'data'):
        shutil.copytree(root/o, src/o, ignore=shutil.ignore_patterns('.*', 'sample', 'cache', '*.lock'))
    (src/'results'/'README.md').write_text(without_folders(root/'results'/'README.md'), encoding='utf-8')
    for p in (src/'nbs').rglob('*.ipynb'): prepare(p)
    mods = sorted('.'.join(p.relative_to(root/'course_lib').with_suffix('').parts) for p in (root/'course_lib').rglob('*.py') if p.stem[0] != '_')
    for o in mods: (src/'api'/f'{o}.md').write_text(api_page(o), encoding='utf-8')
    return mods


def index(mods):
    lessons = sorted((src/'nbs').glob('[0-9]*.ipynb'))
    names = lambda d: [f'nbs/{d}/{p.stem}' for p in sorted((src/'nbs'/d).glob('*.ipynb'))]
    rows = [f"| [{p.stem.split('_')[0]}](nbs/{p.name}) | {title(p)} |" for p in lessons]
    return '\n'.join(['# A deep-learning course that runs', '', 'Numbered notebooks, as they were executed. [What it is and how to run it](README.md).', '',
        '| | |', '|---|---|', *rows, '', toc('Lessons', [f"{p.stem.split('_')[0]} {title(p)} <nbs/{p.stem}>" for p in lessons]), *(toc(v, names(k)) for k,v in folders.items()),
        toc('The package', [f'api/{o}' for o in mods]), toc('About', ['README', 'results/README', 'CONTRIBUTING', 'CHANGELOG', 'SECURITY', 'data/README'])])


def mend_links():
    "Links in a cell's output lead to notebooks still: to their pages"
    for p in html.rglob('*.html'):
        text = p.read_text(encoding='utf-8')
        def page(m): # Sphinx's names of headings are in lower case
            if not (p.parent/f'{m[1]}.html').exists(): return m[0]
            return f'href="{m[1]}.html{m[2] and "#" + make_id(unquote(m[2]))}"'
        new = re.sub(r'href="([^":#]+)\.ipynb(#[^"]*|)"', page, text)
        if new != text: p.write_text(new, encoding='utf-8')


if __name__ == '__main__':
    warnings.filterwarnings('ignore', 'docments unavailable') # of a step made from a dataclass
    (src/'index.md').write_text(index(gather()), encoding='utf-8')
    cmd = [sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-j', 'auto', '-b', 'html', '-c', str(root/'site'), str(src), str(html)]
    code = subprocess.run(cmd).returncode
    shutil.copytree(root/'results'/'pictures', html/'results'/'pictures', dirs_exist_ok=True) # the README's gallery is HTML
    mend_links()
    for o in html.iterdir(): shutil.move(o, out)
    shutil.rmtree(out/'.build')
    if not code: print(f'{out}/index.html')
    sys.exit(code)
