#!/usr/bin/env bash
# Trains and evaluates on a Cloud TPU slice, from this machine, through gcloud (queued resources).
#
#   launch/tpu_pod.sh create   --name=pod --zone=us-central2-b --accelerator_type=v4-3072
#                              [--spot | --reserved]
#   launch/tpu_pod.sh train    --name=pod --zone=us-central2-b --
#                              --config=configs/flamingo_80b.py --workdir=gs://bucket/run
#   launch/tpu_pod.sh evaluate --name=pod --zone=us-central2-b --
#                              --config=configs/evaluate.py --checkpoint=gs://bucket/run
#                              --output=gs://bucket/report
#   launch/tpu_pod.sh logs     --name=pod --zone=us-central2-b
#                              [--worker=3 | --worker=all] [--lines=100] [--follow]
#   launch/tpu_pod.sh delete   --name=pod --zone=us-central2-b [--quiet]
#
# create requests the slice and waits until it is ready. A slice that failed or was preempted is
# requested again. train and evaluate copy this repository, with uncommitted changes but without
# ignored files, to all workers, install it, and start the program on all of them. The program
# continues without this machine. A running job is ended first. Started again, train continues from
# the newest checkpoint in the workdir.
#
#   --name=NAME               of the slice and of its queued resource (or $TPU_NAME)
#   --project=ID --zone=ZONE  (or $PROJECT_ID, $ZONE; else gcloud's own settings)
#   --accelerator_type=TYPE   such as v4-32, v5p-128, v5litepod-16, v6e-256 (or $ACCELERATOR_TYPE)
#   --runtime_version=NAME    image of the workers (or $RUNTIME_VERSION); by default the one for JAX
#   --spot | --reserved       the tier; on demand by default
#   --network=NAME --subnetwork=NAME --service_account=EMAIL
#   --internal_ips            workers without an external address, in the VPC of this machine
#   --mount=BUCKET:DIRECTORY  mounts a bucket of records on all workers (gcsfuse, read-only); may be
#                             repeated
#   --shared=DIRECTORY        a file system that all workers have mounted (Filestore, NFS), where a
#                             workdir may be, besides gs://; may be repeated
#   --env=NAME=VALUE          environment variable of the program; may be repeated
#   --watch                   train, evaluate: waits until the program ends; after a preemption
#                             requests the slice again and restarts the program
#   --poll=SECONDS            between two checks of a state; 30
#   --dry_run                 prints the commands, and runs none
#   -- FLAGS                  flags of the program
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
MAX_RESTARTS=3    # of a job that fails repeatedly on an active slice
LONG_ENOUGH=600   # seconds; after so long, a failure does not count as a repeated one
MAX_UNANSWERED=5  # status requests without an answer
ARCHIVE=flamingo_jax.tar.gz
ACTIONS="create, train, evaluate, logs or delete"

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }
usage() { sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"; }

# Prints a command with quotes, for pasting into a shell.
quoted() {
  local word line=""
  for word in "$@"; do
    case "$word" in
      '' | *[!A-Za-z0-9_./:=@%+,-]*) word="'${word//\'/\'\\\'\'}'" ;;
    esac
    line="$line$word "
  done
  printf '%s\n' "${line% }"
}

# Runs a command; with --dry_run prints it.
run() {
  if [ "$dry_run" = yes ]; then quoted "$@" >&3; else "$@"; fi
}

queued_resources() {
  run gcloud compute tpus queued-resources "$1" "$name" ${place[@]+"${place[@]}"} "${@:2}"
}

# Runs a command on workers. $1: a worker's number, or all; $2: the command.
on_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" "${reach[@]}" --worker="$1" --command="$2" </dev/null
}

# Prints the state of the queued resource: NONE, or a state of Cloud TPU, such as
# WAITING_FOR_RESOURCES, ACTIVE or SUSPENDED.
state() {
  local answer
  if [ "$dry_run" = yes ]; then
    queued_resources describe --format='value(state.state)'
    printf 'ACTIVE\n'
  elif answer="$(queued_resources describe --format='value(state.state)' 2>&1)"; then
    printf '%s\n' "${answer##*$'\n'}" # the lines before are gcloud's remarks
  elif [[ $answer == *NOT_FOUND* ]]; then
    printf 'NONE\n'
  else
    die "gcloud cannot describe $name: ${answer##*$'\n'}"
  fi
}

# Checks the options of a request; sets $runtime_version. https://cloud.google.com/tpu/docs/runtimes
check_request() {
  [ -n "$accelerator_type" ] \
    || die "no accelerator type: --accelerator_type=v4-32 (or \$ACCELERATOR_TYPE)"
  [ -z "$runtime_version" ] || return 0
  case "$accelerator_type" in
    v2-* | v3-* | v4-*) runtime_version=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime_version=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime_version=v2-alpha-tpuv5 ;;
    v6e-*) runtime_version=v2-alpha-tpuv6e ;;
    *) die "no runtime version is known for $accelerator_type: --runtime_version=NAME" ;;
  esac
}

# Requests the slice.
request() {
  local slice=(--accelerator-type="$accelerator_type" --runtime-version="$runtime_version")
  queued_resources create --node-id="$name" "${slice[@]}" ${tier[@]+"${tier[@]}"} \
    ${network[@]+"${network[@]}"} || die "gcloud refused the request (the reason is above)"
}

# Requests the slice if needed, and waits until it is active.
create() {
  local now before="" started=$SECONDS explain
  check_request
  explain=(gcloud compute tpus queued-resources describe "$name" ${place[@]+"${place[@]}"})
  now="$(state)"
  case "$now" in
    SUSPENDING | DELETING) # a new request with this name must wait for the end of the old one
      while now="$(state)" && [[ $now == SUSPENDING || $now == DELETING ]]; do sleep "$poll"; done
      ;;
  esac
  case "$now" in
    FAILED | SUSPENDED)
      say "$name is $now; asking for it anew"
      queued_resources delete --force --quiet \
        || die "gcloud cannot delete the old request (the reason is above)"
      now=NONE
      ;;
  esac
  if [ "$now" = NONE ] || [ "$dry_run" = yes ]; then request; fi
  [ "$dry_run" = no ] || return 0
  while :; do
    now="$(state)"
    [ "$now" = "$before" ] || say "$name: $now after $((SECONDS - started)) s"
    before="$now"
    case "$now" in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED | NONE)
        die "$name is $now and will not come. The reason: $(quoted "${explain[@]}")"
        ;;
    esac
    sleep "$poll"
  done
}

# Packs the repository, with uncommitted changes but without ignored files. $1: the archive.
pack() {
  if [ "$dry_run" = yes ]; then
    printf '%s | %s\n' "$(quoted git -C "$ROOT" ls-files -z --cached --others --exclude-standard)" \
      "$(quoted tar -C "$ROOT" --null --files-from=- -czf "$1")" >&3
    return
  fi
  # git's list contains files that were deleted without a commit.
  git -C "$ROOT" ls-files -z --cached --others --exclude-standard \
    | while IFS= read -r -d '' file; do [ ! -e "$ROOT/$file" ] || printf '%s\0' "$file"; done \
    | tar -C "$ROOT" --null --files-from=- -czf "$1"
}

# Prints the command that shows the logs. $@: options.
logs_command() { quoted launch/tpu_pod.sh logs --name="$name" ${place[@]+"${place[@]}"} "$@"; }

# Copies the repository to all workers, installs it and starts the program, after ending a running
# one. Returns non-zero if a worker failed.
launch() {
  local archive installation begin script=flamingo_jax/launch/tpu_worker.sh
  archive="$scratch/$ARCHIVE"
  # The old job must be ended before the new one looks for the newest checkpoint.
  on_workers all "! [ -x $script ] || $script stop" || return
  pack "$archive" || return
  run gcloud compute tpus tpu-vm scp "$archive" "$name:$ARCHIVE" "${reach[@]}" --worker=all \
    || return
  # Files of the last copy that are not in this one are removed; others (.venv, caches) stay.
  installation="set -e; mkdir -p flamingo_jax flamingo_pod"
  installation="$installation; tar -tzf $ARCHIVE | sort >flamingo_pod/new; touch flamingo_pod/files"
  installation="$installation; cd flamingo_jax; comm -23 ../flamingo_pod/files ../flamingo_pod/new"
  installation="$installation | xargs -r -d '\\n' rm -f --"
  installation="$installation; tar -xzf ../$ARCHIVE; mv ../flamingo_pod/new ../flamingo_pod/files"
  installation="$installation; $(quoted launch/tpu_worker.sh install ${mounts[@]+"${mounts[@]}"})"
  on_workers all "$installation" || return
  begin=("$script" start ${variables[@]+"${variables[@]}"} -- "flamingo_jax.$action" "${flags[@]}")
  on_workers all "$(quoted "${begin[@]}")" || return
  [ "$dry_run" = yes ] \
    || say "started flamingo_jax.$action on all workers of $name; its log: $(logs_command --follow)"
}

# Waits until the program ends, and restarts it after preemptions.
watch_job() {
  local now lines restarts=0 unanswered=0 is_started=yes since=$SECONDS
  while :; do
    sleep "$poll"
    now="$(state)" || continue # it has printed the reason; the network may recover
    if [ "$now" != ACTIVE ]; then
      say "$name is $now"
      create
      is_started=no
    elif [ "$is_started" = yes ]; then
      lines="$(on_workers all 'flamingo_jax/launch/tpu_worker.sh status' 2>/dev/null)" || lines=""
      if ! lines="$(grep '^worker ' <<<"$lines")"; then
        # A worker is being preempted, or the connection is lost while the job continues.
        unanswered=$((unanswered + 1))
        [ "$unanswered" -gt "$MAX_UNANSWERED" ] || continue
        lines="some workers do not answer"
      fi
      unanswered=0
      if ! grep -qv ': ended 0$' <<<"$lines"; then
        say "flamingo_jax.$action has ended on all workers"
        return
      fi
      grep -qv ': ended 0$\|: running$' <<<"$lines" || continue
      [ $((SECONDS - since)) -lt "$LONG_ENOUGH" ] || restarts=0
      restarts=$((restarts + 1))
      say "the job is broken: $(grep -v ': running$' <<<"$lines" | sort | paste -s -d ';' -)"
      [ "$restarts" -le "$MAX_RESTARTS" ] \
        || die "it failed $restarts times in a row. Its log: $(logs_command --worker=all)"
    fi
    is_started=no
    since=$SECONDS
    if launch; then is_started=yes; else say "not all workers could be reached; trying again"; fi
  done
}

# Returns 0 if all workers have a path. $1: the path.
is_shared() {
  local directory
  [[ $1 =~ ^gs://[a-z0-9][a-z0-9._-]+/. ]] && return
  for directory in ${shared[@]+"${shared[@]}"}; do
    [[ $1 == "${directory%/}"/* && $1 != *..* ]] && return
  done
  return 1
}

# Prints the value of the program's flag $1; prints nothing without this flag.
flag() {
  local i
  for ((i = 0; i < ${#flags[@]}; i++)); do
    case "${flags[i]}" in
      "--$1="* | "-$1="*) printf '%s\n' "${flags[i]#*=}" ;;
      "--$1" | "-$1") printf '%s\n' "${flags[i + 1]:-}" ;;
    esac
  done
}

# Finds mistakes that would otherwise fail on every worker.
check_program() {
  local config path wanted shipped=no ls_files
  ls_files=(git -C "$ROOT" ls-files --cached --others --exclude-standard --error-unmatch --)
  [ "${#flags[@]}" -gt 0 ] || die "$action needs the flags of the program after --," \
    "as in: $action --name=pod -- --config=... --workdir=gs://..."
  config="$(flag config)"
  [ -n "$config" ] || die "no config: -- --config=configs/FILE.py"
  config="${config%%:*}"
  git -C "$ROOT" rev-parse >/dev/null 2>&1 \
    || die "$ROOT is no git repository, and git lists what is shipped: clone the repository"
  [ -e "$ROOT/$config" ] && "${ls_files[@]}" "$config" >/dev/null 2>&1 && shipped=yes
  [ "$shipped" = yes ] || die "the config $config is not a file of this repository" \
    "(a path from its root, which git does not ignore), so it would not be shipped"
  for wanted in $1; do
    path="$(flag "$wanted")"
    [ -n "$path" ] || die "no --$wanted: -- --$wanted=gs://BUCKET/PATH"
    is_shared "$path" || die "--$wanted=$path is not a place that all workers see:" \
      "give gs://BUCKET/PATH, or name a file system that they share with --shared=DIRECTORY"
  done
}

action=""
name="${TPU_NAME:-}" project="${PROJECT_ID:-}" zone="${ZONE:-}"
accelerator_type="${ACCELERATOR_TYPE:-}" runtime_version="${RUNTIME_VERSION:-}"
worker=0 lines=100 follow="" watch=no poll=30 dry_run=no
tier=() network=() route=() mounts=() shared=() variables=() flags=() quiet=()
while [ $# -gt 0 ]; do
  argument="$1"
  shift
  case "$argument" in
    create | train | evaluate | logs | delete)
      [ -z "$action" ] || die "two actions, $action and $argument: give one"
      action="$argument"
      ;;
    --name=*) name="${argument#*=}" ;;
    --project=?*) project="${argument#*=}" ;;
    --zone=?*) zone="${argument#*=}" ;;
    --accelerator_type=?*) accelerator_type="${argument#*=}" ;;
    --runtime_version=?*) runtime_version="${argument#*=}" ;;
    --spot | --reserved)
      [ "${#tier[@]}" -eq 0 ] || [ "${tier[0]}" = "$argument" ] \
        || die "--spot and --reserved exclude each other"
      tier=("$argument")
      ;;
    --network=?*) network+=("$argument") ;;
    --subnetwork=?*) network+=("$argument") ;;
    --service_account=?*) network+=("--service-account=${argument#*=}") ;;
    --internal_ips) network+=(--internal-ips) route=(--internal-ip) ;;
    --mount=gs://*)
      die "$argument: expected the bucket's name alone, as in --mount=BUCKET:DIRECTORY"
      ;;
    --mount=?*:?*) mounts+=("${argument#*=}") ;;
    --shared=/?*) shared+=("${argument#*=}") ;;
    --env=[A-Za-z_]*=*) variables+=("${argument#*=}") ;;
    --worker=*) worker="${argument#*=}" ;;
    --lines=*) lines="${argument#*=}" ;;
    --poll=*) poll="${argument#*=}" ;;
    --follow) follow=follow ;;
    --watch) watch=yes ;;
    --quiet) quiet=(--quiet) ;;
    --dry_run) dry_run=yes ;;
    -h | --help) usage; exit ;;
    --)
      flags=("$@")
      break
      ;;
    -*)
      die "launch/tpu_pod.sh does not know $argument" \
        "(launch/tpu_pod.sh --help lists its options; those of the program come after --)"
      ;;
    *) die "launch/tpu_pod.sh has no action $argument: expected $ACTIONS" ;;
  esac
done

[ -n "$action" ] || die "no action: expected $ACTIONS (launch/tpu_pod.sh --help)"
[ -n "$name" ] || die "no name: --name=NAME (or \$TPU_NAME)"
# https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.queuedResources/create
[[ $name =~ ^[A-Za-z0-9_.~+%][A-Za-z0-9_.~+%-]*$ ]] \
  || die "--name=$name: expected letters, digits and any of _ . ~ + % -, not beginning with -"
[[ -z $zone || $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] \
  || die "--zone=$zone: expected a zone, such as us-central2-b"
[[ -z $accelerator_type || $accelerator_type =~ ^v[0-9]+[a-z]*-[0-9]+$ ]] \
  || die "--accelerator_type=$accelerator_type: expected a type, such as v4-32 or v5litepod-16"
[[ $worker =~ ^([0-9]+|all)$ ]] || die "--worker=$worker: expected a number, or all"
[[ $lines =~ ^[0-9]+$ ]] || die "--lines=$lines: expected a number"
[[ $poll =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "--poll=$poll: expected seconds"
[ "$dry_run" = yes ] || command -v gcloud >/dev/null 2>&1 \
  || die "there is no gcloud here: install the Google Cloud CLI, and log in (gcloud auth login)"
place=(${project:+"--project=$project"} ${zone:+"--zone=$zone"})
# --quiet: gcloud makes a key for ssh without questions.
reach=(${place[@]+"${place[@]}"} ${route[@]+"${route[@]}"} --quiet)
exec 3>&1 # --dry_run prints here, also inside of $(...)

case "$action" in
  create) create ;;
  train | evaluate)
    if [ "$action" = train ]; then check_program workdir; else check_program "checkpoint output"; fi
    scratch="${TMPDIR:-/tmp}"
    if [ "$dry_run" = no ]; then
      scratch="$(mktemp -d)"
      trap 'rm -rf "$scratch"' EXIT
    fi
    now="$(state)"
    if [ "$now" != ACTIVE ]; then
      [ "$watch" = yes ] \
        || die "$name is $now, not ACTIVE: launch/tpu_pod.sh create" \
          "(or $action --watch, which asks for it)"
      create
    fi
    launch || die "not all workers of $name have started (the reason is above)." \
      "Mend it, and run this again"
    if [ "$watch" = yes ] && [ "$dry_run" = no ]; then watch_job; fi
    ;;
  logs)
    show=(flamingo_jax/launch/tpu_worker.sh log "$lines" ${follow:+follow})
    on_workers "$worker" "$(quoted "${show[@]}")"
    ;;
  delete) queued_resources delete --force ${quiet[@]+"${quiet[@]}"} ;;
esac
