# What the scripts of this folder share; they source it. Each has its own options first: --config and all that follows
# go to pujax.launch as they are, so that `--config FILE --dry_run` is the job's dry run and not the script's.
# shellcheck shell=bash
exec 3>&1 # where --dry_run prints, also from within $(...)

usage() { # the head of the script that was called; all of them go to the root of the repository first
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "launch/${0##*/}"
}

fail() { # MESSAGE: the command line is wrong
  echo "${0##*/}: $*" >&2
  exit 2
}

needs() { # NAME WHAT: a variable of the environment
  [[ -n "${!1:-}" ]] || fail "$1 is not set: $2; see --help"
}

quoted() { # ARGUMENT...: as text for a shell, here or on another machine
  printf '%q ' "$@"
}

run() { # COMMAND...: run it; with --dry_run print it
  if [[ -n "${dry_run:-}" ]]; then
    quoted "$@" >&3
    echo >&3
  else
    "$@"
  fi
}

given() { # NAME ARGUMENT...: the value of an option of pujax.launch, `--name=value` or `--name value`; "" without it
  local name="$1" value=
  shift
  while (($#)); do
    case "$1" in
      "$name="*) value="${1#*=}" ;;
      "$name") value="${2:-}" ;;
    esac
    shift
  done
  printf '%s' "$value"
}
