"""Whole notebooks of the course in JupyterLab, in a real browser: Run All Cells to the last one, and what the panel copies, pasted into a
cell. COURSE_TEST_ALL=1 takes lesson 03 as well"""
import json, os
import nbformat, pytest
from browser import browsing, jupyterlab, open_and_run, root, run, until # skips where there is no browser

ended = '''const nb = jupyterapp.shell.currentWidget, cells = nb.content.widgets.filter(o => o.model.type == 'code').map(o => o.model.toJSON());
const bad = cells.flatMap(o => o.outputs.filter(x => x.output_type == 'error').map(x => x.ename + ': ' + x.evalue));
const left = cells.filter(o => o.source.join ? o.source.join('').trim() : o.source.trim()).filter(o => !o.execution_count).length;
return {bad, left, idle: nb.sessionContext.session.kernel.status == 'idle', last: cells.at(-1).outputs}'''
to_panel = '''const c = jupyterapp.shell.currentWidget.content, seen = o => JSON.stringify(o.model.toJSON().outputs || '').includes('widget-view');
c.activeCellIndex = c.widgets.findLastIndex(seen); c.scrollToItem(c.activeCellIndex)'''
long = ['03_crappify'] if os.environ.get('COURSE_TEST_ALL') == '1' else []
notebooks = '00_start_here', *long, 'apps/crappify_lab' # the last one has the panel


@pytest.fixture(scope='module')
def address(tmp_path_factory):
    "JupyterLab on a folder with notebooks of the course, their outputs taken out"
    home = tmp_path_factory.mktemp('jupyter')
    (home/'nb').mkdir()
    for name in notebooks:
        nb = nbformat.read(root/'nbs'/f'{name}.ipynb', as_version=4)
        for o in nb.cells:
            if o.cell_type == 'code': o.outputs, o.execution_count = [], None
        nbformat.write(nb, home/'nb'/f"{name.split('/')[-1]}.ipynb")
    with jupyterlab(home, home/'nb') as address: yield address


@pytest.fixture(scope='module')
def driver(address, tmp_path_factory):
    with browsing(tmp_path_factory.mktemp('chromium')) as d:
        d.execute_cdp_cmd('Browser.grantPermissions', dict(permissions=['clipboardReadWrite', 'clipboardSanitizedWrite'], origin=address))
        yield d


def all_run(d):
    "Where the notebook stands, once every cell has run or one has failed"
    def at():
        o = d.execute_script(ended)
        return o if o['bad'] or o['idle'] and not o['left'] else None
    return until(d, at, 1200, 'the cells have not all run')


@pytest.mark.parametrize('name', notebooks)
def test_run_all(driver, address, name):
    "Every cell of a notebook runs in JupyterLab, in order, and none fails"
    open_and_run(driver, address, f"{name.split('/')[-1]}.ipynb", '.jp-OutputArea-output')
    assert all_run(driver)['bad'] == []


def test_copied_code_is_pasted(driver, address):
    "The panel's code, copied, is a cell that runs below it, and gives the chain that the panel shows"
    d = driver
    d.execute_script(to_panel)
    button = '//div[contains(@class, "cl-lab")]//button[contains(., "copy as code")]'
    until(d, lambda: d.find_elements('xpath', button))[0].click()
    read = 'navigator.clipboard.readText().then(arguments[0], e => arguments[0](String(e)))'
    code = until(d, lambda: d.execute_async_script(read))
    assert code == d.find_element('css selector', '.cl-code textarea').get_property('value')
    d.execute_script('const c = jupyterapp.shell.currentWidget.content; c.activeCellIndex = c.widgets.length-1')
    assert run(d, 'notebook:insert-cell-below') == 1
    d.execute_script('jupyterapp.shell.currentWidget.content.activeCell.model.sharedModel.setSource(arguments[0])', f'print(repr({code}))')
    assert run(d, 'notebook:run-cell') == 1
    last = until(d, lambda: d.execute_script(ended)['last'])
    assert last[0].get('text', '').strip() == code, json.dumps(last)[:300]
