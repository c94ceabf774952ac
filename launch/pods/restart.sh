#!/bin/bash
# Runs a command again until it is done: the loop that every launcher of
# launch/pods puts around `python -m launch.train`, which resumes by itself.
#
#   bash launch/pods/restart.sh [--limit=10] [--wait=30] [--stop=child]
#       [--stop_if=COMMAND] -- python -m launch.train ...
#
# By exit status of the command:
#   0    done: ends with 0
#   2    bad input, which fails for ever: ends with 2, never again
#   130  interrupted, everything saved: again, however often
#   else a failure: again, up to --limit times, then ends with 3 (gave up)
# Before each new start, --stop_if is run; when it succeeds, another host has
# settled the matter: ends with 4.
#
# --stop says who tells the command to stop:
#   child  TERM to this script goes on to the command (a container: only its
#          first process gets the signal)
#   all    every process gets the signal itself (a host that shuts down); a
#          second one would end the command before it has saved
#   slurm  the command is srun. TERM means a cancelled or preempted job: SLURM
#          signals the tasks and requeues what is to be requeued. USR1 means
#          that the time limit is near: the tasks are told, the job is requeued.
# After a signal nothing is started again; the exit status is 130 unless the
# command still ended with 0 or 2.
set -u

limit=10 wait_seconds=30 stop=child stop_if=false
while [ "$#" -gt 0 ]; do
  case $1 in
    --limit=*) limit=${1#*=} ;;
    --wait=*) wait_seconds=${1#*=} ;;
    --stop=*) stop=${1#*=} ;;
    --stop_if=*) stop_if=${1#*=} ;;
    --) shift; break ;;
    *) echo "restart: unknown argument $1" >&2; exit 2 ;;
  esac
  shift
done
[ "$#" -gt 0 ] || { echo 'restart: no command after --' >&2; exit 2; }

say() { echo "restart: $(date -u +%FT%TZ) $*" >&2; }

child='' sleeper='' stopping='' told='' interrupted=''
tell_command() {
  [ -n "$child" ] && [ -z "$told" ] || return 0
  told=1
  case $stop:$stopping in
    child:*) kill -TERM "$child" 2>/dev/null ;;
    # srun answers TERM by killing its tasks at once; scancel only signals.
    slurm:USR1) scancel --signal=TERM "$SLURM_JOB_ID" ;;
  esac
}
on_signal() {
  interrupted=1
  [ -z "$stopping" ] || return 0
  stopping=$1
  say "got $1"
  tell_command
  [ -z "$sleeper" ] || kill "$sleeper" 2>/dev/null
}
trap 'on_signal TERM' TERM
trap 'on_signal USR1' USR1

failures=0
while :; do
  if [ -z "$stopping" ]; then
    "$@" &
    child=$!
    # A signal between the test above and here found no child to tell.
    [ -z "$stopping" ] || tell_command
    # A signal ends `wait` early; the command's own status is still to come.
    interrupted=1
    while [ -n "$interrupted" ]; do
      interrupted=''
      wait "$child"
      code=$?
    done
    child=''
  else
    code=130
  fi
  case $code in
    0) say 'done'; exit 0 ;;
    2) say 'bad input (exit 2): not started again'; exit 2 ;;
  esac
  if [ -n "$stopping" ]; then
    say "stopped by $stopping (exit $code)"
    if [ "$stop" = slurm ] && [ "$stopping" = USR1 ]; then
      say "requeues job $SLURM_JOB_ID"
      scontrol requeue "$SLURM_JOB_ID"
    fi
    exit 130
  fi
  if [ "$code" -ne 130 ]; then
    failures=$((failures + 1))
    if [ "$failures" -gt "$limit" ]; then
      say "exit $code: gave up after $limit restarts"
      exit 3
    fi
  fi
  say "exit $code: again in $wait_seconds s ($failures of $limit failures)"
  sleep "$wait_seconds" &
  sleeper=$!
  wait "$sleeper"
  sleeper=''
  [ -z "$stopping" ] || continue
  if bash -c "$stop_if"; then
    say 'another host settled it: not started again'
    exit 4
  fi
done
