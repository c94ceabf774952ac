"""The start-up script of TPU machines: what each runs by itself at every boot.

So a machine that was restarted or made anew goes on without anyone: the script
fetches and installs the code, then runs the training, which resumes from its
last checkpoint, inside restart.sh. What it leaves in the bucket:

  FOLDER/verdict          how the job ended: `0 HOST`, `2 HOST` (bad input) or
                          `3 HOST` (gave up); no machine starts again after it
  FOLDER/log-HOST.txt     the log, HOST = slice-worker; on the machine:
                          /var/log/metastone.log
"""

import shlex

from launch.pods import job
from launch.pods.code import Code

LOG = '/var/log/metastone.log'

_SCRIPT = r"""#!/bin/bash
# Job @NAME@: run by every TPU machine at every boot.
exec >>@LOG@ 2>&1
set -uo pipefail
export HOME=/root
say() { echo "start-up: $(date -u +%FT%TZ) $*"; }

metadata() {
  curl -sf -H 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"
}
until worker=$(metadata agent-worker-number); do sleep 5; done
slice=$(metadata tpu-env | sed -n "s/^MEGASCALE_SLICE_ID: *'\(.*\)'.*/\1/p")
host=${slice:-0}-$worker
verdict=@VERDICT@
folder=/opt/metastone/@NAME@
say "host $host"

settled() { gcloud storage ls "$verdict" >/dev/null 2>&1; }
finish() {
  gcloud storage cp @LOG@ @FOLDER@/log-"$host".txt
  case $1 in
    # The first host writes the report, so it is the one that knows.
    0) [ "$host" = 0-0 ] && echo "0 $host" | gcloud storage cp - "$verdict" ;;
    2 | 3) settled || echo "$1 $host" | gcloud storage cp - "$verdict" ;;
  esac
  exit "$1"
}
if settled; then
  say 'the job has ended'
  exit 0
fi

# The images' own Python is too old; uv brings one.
install() {
  [ "$(cat "$folder/.ready" 2>/dev/null)" = @IDENTITY@ ] && return 0
  rm -rf "$folder" && mkdir -p "$folder" && cd "$folder" \
    && @FETCH@ \
    && curl -LsSf https://astral.sh/uv/install.sh \
      | env UV_INSTALL_DIR=/opt/metastone/bin UV_NO_MODIFY_PATH=1 sh \
    && /opt/metastone/bin/uv venv --quiet --python=3.12 .venv \
    && /opt/metastone/bin/uv pip install --quiet \
      --python=.venv/bin/python --editable @PACKAGE@ \
    && printf %s @IDENTITY@ >"$folder/.ready"
}
prepare() {
  install || return 1
@SECRETS@
}
attempt=1
until prepare; do
  if [ "$attempt" -ge 5 ]; then
    say 'the code cannot be installed; gave up'
    finish 3
  fi
  say "installing failed ($attempt of 5)"
  attempt=$((attempt + 1))
  sleep 30
done

cd "$folder" || finish 3
export PATH="$folder/.venv/bin:$PATH"
@EXPORTS@
@COMMAND@
finish $?
"""


def script(
  *,
  name: str,
  folder: str,
  code: Code,
  extras: str,
  command: list[str],
  environment: dict[str, str],
  secrets: dict[str, str],
  project: str,
  max_restarts: int,
) -> str:
  """The script as text.

  Args:
    name: of the job.
    folder: gs:// folder for verdict, logs and code.
    code: what to install.
    extras: of setup.cfg, for example 'tpu,gym'.
    command: the training command, without its restart loop.
    environment: variables of the processes.
    secrets: variable -> name of a secret in Secret Manager; the value is read
      on the machine and stands nowhere else.
    project: of the secrets; '' = the machine's own.
    max_restarts: after failures on a machine.
  """
  verdict = f'{folder}/verdict'
  stop_if = f'gcloud storage ls {shlex.quote(verdict)} >/dev/null 2>&1'
  loop = job.restart_command(
    command, max_restarts, '--stop=all', f'--stop_if={stop_if}'
  )
  of_project = f' --project={shlex.quote(project)}' if project else ''
  read = [
    f'  {variable}=$(gcloud secrets versions access latest'
    f' --secret={shlex.quote(secret)}{of_project}) || return 1\n'
    f'  export {variable}'
    for variable, secret in secrets.items()
  ]
  values = {
    'NAME': name,
    'LOG': LOG,
    'VERDICT': shlex.quote(verdict),
    'FOLDER': shlex.quote(folder),
    'IDENTITY': shlex.quote(code.identity),
    'FETCH': code.fetch,
    'PACKAGE': shlex.quote(f'.[{extras}]' if extras else '.'),
    'SECRETS': '\n'.join(read) or '  return 0',
    'EXPORTS': '\n'.join(
      f'export {key}={shlex.quote(value)}' for key, value in environment.items()
    ),
    'COMMAND': shlex.join(loop),
  }
  # Split first: a value that contains @NAME@ is not touched again.
  parts = _SCRIPT.split('@')
  return ''.join(
    values[part] if i % 2 else part for i, part in enumerate(parts)
  )
