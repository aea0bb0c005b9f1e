"What the browser tests share: a server that knows nothing of this machine's settings, and Debian's chromium with its chromedriver"
import os, shutil, signal, socket, subprocess, sys, time, urllib.request
from contextlib import contextmanager
from pathlib import Path
import pytest

chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
chromedriver = shutil.which('chromedriver')
if not (chromium and chromedriver):
    pytest.skip('the browser tests need chromium and chromedriver (Debian: apt install chromium chromium-driver)', allow_module_level=True)
pytest.importorskip('selenium', reason='the browser tests need selenium: install the extra [dev]')

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import ChromeOptions, ChromeService
from selenium.webdriver.support.ui import WebDriverWait

root = Path(__file__).resolve().parent.parent
flags = '--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --window-size=1400,1300'.split()
token = 'tests-only'


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def write_notebook(path, cells):
    from nbformat.v4 import new_code_cell, new_notebook, writes
    nb = new_notebook(cells=list(map(new_code_cell, cells)), metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python')))
    path.parent.mkdir(exist_ok=True)
    path.write_text(writes(nb))


def server_env(home):
    "The environment of a server that knows nothing of this machine's settings and asks nobody for news"
    news = home/'settings'/'@jupyterlab'/'apputils-extension'/'notification.jupyterlab-settings'
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    own = dict(JUPYTER_RUNTIME_DIR='runtime', JUPYTER_CONFIG_DIR='config', JUPYTER_DATA_DIR='data', JUPYTERLAB_SETTINGS_DIR='settings',
               JUPYTERLAB_WORKSPACES_DIR='workspaces', IPYTHONDIR='ipython', COURSE_DATA='course', COURSE_RUNS='runs')
    kept = {k: v for k,v in os.environ.items() if k not in ('IN_TEST', 'COURSE_PROFILE', 'JUPYTER_TOKEN', 'MPLBACKEND')}
    return {**kept, **{k: str(home/v) for k,v in own.items()}, 'JUPYTER_PREFER_ENV_PATH': '1', 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'}


@contextmanager
def serving(home, *args, ask='/'):
    "A server started by `python -m`, with its port as the last argument, until it answers; gone in the end whatever happens"
    port = free_port()
    with open(home/'log', 'w') as log:
        p = subprocess.Popen([sys.executable, '-m', *map(str, args), f'--port={port}'], env=server_env(home), stdout=log, stderr=subprocess.STDOUT,
            cwd=home, start_new_session=True)
    try:
        for _ in range(200):
            if p.poll() is not None: pytest.fail(f'{args[0]} did not start: ' + (home/'log').read_text()[-2000:])
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}{ask}', timeout=60).close(); break
            except OSError: time.sleep(.2)
        else: pytest.fail(f'{args[0]} did not answer: ' + (home/'log').read_text()[-2000:])
        yield f'http://127.0.0.1:{port}'
    finally: stop(p)


def jupyterlab(home, folder):
    "JupyterLab on a folder; see `serving`"
    return serving(home, 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', '--ServerApp.port_retries=0', f'--IdentityProvider.token={token}',
                   f'--ServerApp.root_dir={folder}', '--LabApp.expose_app_in_browser=True', ask=f'/api/status?token={token}')


def stop(p):
    "End a server, and the kernels that it started: first asked, then told"
    for sig,wait in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        try:
            os.killpg(p.pid, sig)
            p.wait(wait)
        except ProcessLookupError: return
        except subprocess.TimeoutExpired: continue


@contextmanager
def browsing(profile):
    "A browser; `profile` is an empty folder"
    options = ChromeOptions()
    options.binary_location = chromium
    for o in (*flags, f'--user-data-dir={profile}'): options.add_argument(o)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    d = webdriver.Chrome(options=options, service=ChromeService(chromedriver))
    try:
        d.set_page_load_timeout(60)
        d.set_script_timeout(20)
        yield d
    finally: d.quit()


def open_and_run(d, address, name, seen):
    "Open a notebook in JupyterLab, run its cells, and wait for what they show"
    d.get(f'{address}/lab/tree/{name}?token={token}')
    until(d, lambda: d.execute_script(ready, name), 60, 'the kernel is not ready')
    d.execute_script('jupyterapp.commands.execute("notebook:run-all-cells")') # whose promise ends with the last cell
    until(d, lambda: d.find_elements('css selector', seen), 60, f'no {seen}')


ready = '''const w = window.jupyterapp && jupyterapp.shell.currentWidget, k = w && w.sessionContext && w.sessionContext.session?.kernel;
return !!k && w.context.path == arguments[0] && k.status == 'idle' && document.querySelectorAll('.jp-Notebook .jp-CodeCell').length > 1'''

def run(d, command): return d.execute_async_script(f'const done = arguments[0]; '
    f'jupyterapp.commands.execute({command!r}).then(() => done(1), e => done(String(e)))')

def until(d, what, seconds=15, why='it did not happen'):
    return WebDriverWait(d, seconds, poll_frequency=.05, ignored_exceptions=[StaleElementReferenceException]).until(lambda _: what(), why)
