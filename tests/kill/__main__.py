"""`make test-kill`: starts `kill.scenarios` in a name space of its own, where it may mount a small disk."""

import os
import subprocess
import sys
import tempfile

for options in (["--user", "--map-root-user", "--mount"], ["--mount"]):
    trial = ["unshare", *options, "mount", "-t", "tmpfs", "tmpfs", tempfile.gettempdir()]
    if subprocess.run(trial, capture_output=True, check=False).returncode == 0:
        os.execvp("unshare", ["unshare", *options, sys.executable, "-m", "kill.scenarios", *sys.argv[1:]])
sys.exit("error: a disk that fills up needs the right to mount in a name space of its own: see `man unshare`")
