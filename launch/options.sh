# shellcheck shell=bash
# The options of the scripts in launch/ that make and train something; they source this file first.

# Prints the comment at the head of the script.
usage() { sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"; }

# Ends the script: it has no such option. $1: the option.
unknown_option() {
  printf 'error: launch/%s does not know %s. Its options:\n' "${0##*/}" "$1" >&2
  usage >&2
  exit 2
}

# Ends the script at --config.seed, where --seeds is meant.
no_single_seed() {
  printf 'error: give the seeds as --seeds=1,2; --config.seed is of one run\n' >&2
  exit 2
}

# Prints the absolute path of an option, since the scripts go on in the root of the clone. A shell
# leaves the ~ of --output=~/runs as it is. $1: the option, as in --output=PATH.
path_of() {
  local path="${1#*=}"
  case "$path" in
    /*) ;;
    \~ | \~/*) path="$HOME${path#\~}" ;;
    *) path="$PWD/$path" ;;
  esac
  printf '%s\n' "$path"
}

# Ends the script if an option has a word twice. $1: the option; the rest: its words.
each_once() {
  local option="$1" word seen=" "
  shift
  for word in "$@"; do
    [[ "$seen" != *" $word "* ]] || die "$option has $word twice"
    seen="$seen$word "
  done
}

# Ends the script if a seed is no number, or is there twice. $@: the words of --seeds.
check_seeds() {
  local seed
  for seed in "$@"; do
    [[ "$seed" =~ ^(0|[1-9][0-9]*)$ ]] \
      || die "--seeds has ${seed:-an empty one}; expected numbers, as in 1,2"
  done
  each_once --seeds "$@"
}

# Ends the script if the output cannot be in the list of a joined report. $1: the output.
no_comma() {
  [[ "$1" != *,* ]] || die "--output=$1 has a comma, which is between the runs of a report." \
    "Give a directory without one"
}

# Returns 0 if no stage below an output has begun. $1: the output.
nothing_trained() {
  [ -z "$(find "$1" -maxdepth 4 \( -name export -o -name checkpoints \) -print)" ]
}

# Writes the file of the options of a run. $1: the output; the rest: its lines.
note_options() {
  local file="$1/options"
  { mkdir -p "$1" && printf '%s\n' "${@:2}" >"$file.new" && mv "$file.new" "$file"; } 2>/dev/null \
    || die "cannot write in $1. Is the disk full? (df -h $1) Or give another --output=DIRECTORY"
}

# Stores the options of a run, and refuses an output of others: it would go on from stages that are
# not its own. $1: the output; $2: what it holds, such as "a run"; $3: the options, in one line. A
# script may add others (note_options).
keep_options() {
  local stored
  if [ -e "$1/options" ]; then
    stored="$(head -n 1 "$1/options")"
    [ "$stored" != "$3" ] || return 0
    nothing_trained "$1" || die "$1 holds $2 with other options ($stored). Remove it, or give" \
      "another --output=DIRECTORY"
  fi
  note_options "$1" "$3"
}
