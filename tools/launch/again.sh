#!/bin/bash
# Runs a command, and again when it ends because a process of the run was lost (exit code 75), or because it was
# killed itself:
#
#   tools/launch/again.sh python -m oneforcing_jax.main --distributed --config=... --workdir=...
#
# Whatever else ends it ends this, with its code: an error stays one, and a host that is asked to stop is going away.
most=${RESTARTS:-20}
for ((i = 0; i <= most; i++)); do
  "$@" &
  child=$!
  # The shell hears a signal at once, and the command ends by itself.
  trap 'kill -TERM $child' TERM INT
  wait $child
  code=$?
  # A signal ends the first wait before the command has ended.
  while kill -0 $child 2> /dev/null; do
    wait $child
    code=$?
  done
  case $code in
    75 | 134 | 137 | 139) ;;
    *) exit $code ;;
  esac
  sleep "${PAUSE:-10}"
done
echo "restarted $most times: no more" >&2
exit $code
