#!/usr/bin/env bash
# Training and evaluation on a Cloud TPU slice, from this machine, through gcloud (queued resources).
#
#   launch/tpu_pod.sh create   --name=pod --zone=us-central2-b --accelerator_type=v4-3072 [--spot | --reserved]
#   launch/tpu_pod.sh train    --name=pod --zone=us-central2-b -- --config=configs/flamingo_80b.py --workdir=gs://bucket/run
#   launch/tpu_pod.sh evaluate --name=pod --zone=us-central2-b -- --config=configs/evaluate.py --checkpoint=gs://bucket/run --output=gs://bucket/report
#   launch/tpu_pod.sh logs     --name=pod --zone=us-central2-b [--worker=3 | --worker=all] [--lines=100] [--follow]
#   launch/tpu_pod.sh delete   --name=pod --zone=us-central2-b [--quiet]
#
# create asks for the slice, and waits until it is there; one that failed or was preempted is asked for anew. train and evaluate ship this
# repository as it lies here (but for what git ignores) to all workers, install it, and start the program on all of them; it goes on when this
# machine is gone. A job that runs there already is ended first. Started again, train goes on from the newest checkpoint in the workdir.
#
#   --name=NAME              of the slice and of its queued resource (or $TPU_NAME)
#   --project=ID --zone=ZONE (or $PROJECT_ID, $ZONE; else what gcloud is set to)
#   --accelerator_type=TYPE  such as v4-32, v5p-128, v5litepod-16, v6e-256 (or $ACCELERATOR_TYPE)
#   --runtime_version=NAME   the image of the workers (or $RUNTIME_VERSION); by default the one for JAX on that type
#   --spot | --reserved      the tier; on demand by default
#   --network=NAME --subnetwork=NAME --service_account=EMAIL
#   --internal_ips           workers without an external address, reached over the VPC that this machine is in
#   --mount=BUCKET:DIRECTORY mounts a bucket of records on all workers (gcsfuse, read-only); may be repeated
#   --shared=DIRECTORY       a file system that all workers have mounted (Filestore, NFS): a workdir may lie there, besides gs://; may be repeated
#   --env=NAME=VALUE         of the program; may be repeated
#   --watch                  train, evaluate: stays until the program has ended, asks for the slice again when it was preempted, and starts again
#   --poll=SECONDS           between two looks at a state; 30
#   --dry_run                prints the commands, and runs none
#   -- FLAGS                 of the program, as they are
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
MAX_RESTARTS=3    # of a job that fails again and again although its slice is there
LONG_ENOUGH=600   # seconds; a job that ran so long did not fail again and again
MAX_UNANSWERED=5  # questions to the workers
ARCHIVE=flamingo_jax.tar.gz

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }
usage() { sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"; }

# Prints a command such that it can be pasted into a shell.
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

# Runs a command, or prints it.
run() {
  if [ "$dry_run" = yes ]; then quoted "$@" >&3; else "$@"; fi
}

queued_resources() { run gcloud compute tpus queued-resources "$1" "$name" ${place[@]+"${place[@]}"} "${@:2}"; }

# Runs a command on workers. $1: a worker's number, or all; $2: the command.
on_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" "${reach[@]}" --worker="$1" --command="$2" </dev/null
}

# Prints the state of the queued resource: NONE, or one of Cloud TPU's, such as WAITING_FOR_RESOURCES, ACTIVE or SUSPENDED.
state() {
  local answer
  if [ "$dry_run" = yes ]; then
    queued_resources describe --format='value(state.state)'
    printf 'ACTIVE\n'
  elif answer="$(queued_resources describe --format='value(state.state)' 2>&1)"; then
    printf '%s\n' "${answer##*$'\n'}" # what came before are gcloud's own remarks
  elif [[ $answer == *NOT_FOUND* ]]; then
    printf 'NONE\n'
  else
    die "gcloud cannot describe $name: ${answer##*$'\n'}"
  fi
}

# Looks at what a request needs; sets $runtime_version. https://cloud.google.com/tpu/docs/runtimes
check_request() {
  [ -n "$accelerator_type" ] || die "no accelerator type: --accelerator_type=v4-32 (or \$ACCELERATOR_TYPE)"
  [ -z "$runtime_version" ] || return 0
  case "$accelerator_type" in
    v2-* | v3-* | v4-*) runtime_version=tpu-ubuntu2204-base ;;
    v5litepod-*) runtime_version=v2-alpha-tpuv5-lite ;;
    v5p-*) runtime_version=v2-alpha-tpuv5 ;;
    v6e-*) runtime_version=v2-alpha-tpuv6e ;;
    *) die "no runtime version is known for $accelerator_type: --runtime_version=NAME" ;;
  esac
}

# Asks for the slice.
request() {
  queued_resources create --node-id="$name" --accelerator-type="$accelerator_type" --runtime-version="$runtime_version" \
    ${tier[@]+"${tier[@]}"} ${network[@]+"${network[@]}"} || die "gcloud refused the request (the reason is above)"
}

# Makes the slice be there: asks for it if need be, and waits.
create() {
  local now before="" started=$SECONDS
  check_request
  now="$(state)"
  case "$now" in
    SUSPENDING | DELETING) # a new request under this name must wait for the end of the old one
      while now="$(state)" && [[ $now == SUSPENDING || $now == DELETING ]]; do sleep "$poll"; done
      ;;
  esac
  case "$now" in
    FAILED | SUSPENDED)
      say "$name is $now; asking for it anew"
      queued_resources delete --force --quiet || die "gcloud cannot delete the old request (the reason is above)"
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
      FAILED | SUSPENDING | SUSPENDED | NONE) die "$name is $now and will not come. The reason: $(quoted gcloud compute tpus queued-resources describe "$name" ${place[@]+"${place[@]}"})" ;;
    esac
    sleep "$poll"
  done
}

# Packs the repository as it lies here, but for what git ignores. $1: the archive.
pack() {
  if [ "$dry_run" = yes ]; then
    printf '%s | %s\n' "$(quoted git -C "$ROOT" ls-files -z --cached --others --exclude-standard)" \
      "$(quoted tar -C "$ROOT" --null --files-from=- -czf "$1")" >&3
    return
  fi
  # A file that was deleted and not committed is still in git's list.
  git -C "$ROOT" ls-files -z --cached --others --exclude-standard \
    | while IFS= read -r -d '' file; do [ ! -e "$ROOT/$file" ] || printf '%s\0' "$file"; done \
    | tar -C "$ROOT" --null --files-from=- -czf "$1"
}

# Prints how to see the logs. $@: options.
logs_command() { quoted launch/tpu_pod.sh logs --name="$name" ${place[@]+"${place[@]}"} "$@"; }

# Ships, installs and starts the program on all workers; ends one that runs there. Returns non-zero if a worker failed.
launch() {
  local archive installation begin
  archive="$scratch/$ARCHIVE"
  # Nothing of the old job may be left when the new one looks for the newest checkpoint.
  on_workers all "! [ -x flamingo_jax/launch/tpu_worker.sh ] || flamingo_jax/launch/tpu_worker.sh stop" || return
  pack "$archive" || return
  run gcloud compute tpus tpu-vm scp "$archive" "$name:$ARCHIVE" "${reach[@]}" --worker=all || return
  # Files of the last shipment that are not in this one go; what else lies there (.venv, caches) stays.
  installation="set -e; mkdir -p flamingo_jax flamingo_pod; tar -tzf $ARCHIVE | sort >flamingo_pod/new; touch flamingo_pod/files"
  installation="$installation; cd flamingo_jax; comm -23 ../flamingo_pod/files ../flamingo_pod/new | xargs -r -d '\\n' rm -f --"
  installation="$installation; tar -xzf ../$ARCHIVE; mv ../flamingo_pod/new ../flamingo_pod/files"
  installation="$installation; $(quoted launch/tpu_worker.sh install ${mounts[@]+"${mounts[@]}"})"
  on_workers all "$installation" || return
  begin="$(quoted flamingo_jax/launch/tpu_worker.sh start ${variables[@]+"${variables[@]}"} -- "flamingo_jax.$action" "${flags[@]}")"
  on_workers all "$begin" || return
  [ "$dry_run" = yes ] || say "started flamingo_jax.$action on all workers of $name; its log: $(logs_command --follow)"
}

# Follows the program to its end, through preemptions.
watch_job() {
  local now lines restarts=0 unanswered=0 is_started=yes since=$SECONDS
  while :; do
    sleep "$poll"
    now="$(state)" || continue # said why; the network may come back
    if [ "$now" != ACTIVE ]; then
      say "$name is $now"
      create
      is_started=no
    elif [ "$is_started" = yes ]; then
      if ! lines="$(on_workers all 'flamingo_jax/launch/tpu_worker.sh status' 2>/dev/null | grep '^worker ')"; then
        unanswered=$((unanswered + 1)) # a worker that is being preempted, or a lost connection while the job goes on
        [ "$unanswered" -gt "$MAX_UNANSWERED" ] || continue
        lines="some workers do not answer"
      fi
      unanswered=0
      grep -qv ': ended 0$' <<<"$lines" || { say "flamingo_jax.$action has ended on all workers"; return; }
      grep -qv ': ended 0$\|: running$' <<<"$lines" || continue
      [ $((SECONDS - since)) -lt "$LONG_ENOUGH" ] || restarts=0
      restarts=$((restarts + 1))
      say "the job is broken: $(grep -v ': running$' <<<"$lines" | sort | paste -s -d ';' -)"
      [ "$restarts" -le "$MAX_RESTARTS" ] || die "it failed $restarts times in a row. Its log: $(logs_command --worker=all)"
    fi
    is_started=no
    since=$SECONDS
    if launch; then is_started=yes; else say "not all workers could be reached; trying again"; fi
  done
}

# Whether all workers see a path. $1: the path.
is_shared() {
  local directory
  [[ $1 =~ ^gs://[a-z0-9][a-z0-9._-]+/. ]] && return
  for directory in ${shared[@]+"${shared[@]}"}; do
    [[ $1 == "${directory%/}"/* && $1 != *..* ]] && return
  done
  return 1
}

# Prints the value of the program's flag $1; nothing if it is not given.
flag() {
  local i
  for ((i = 0; i < ${#flags[@]}; i++)); do
    case "${flags[i]}" in
      "--$1="* | "-$1="*) printf '%s\n' "${flags[i]#*=}" ;;
      "--$1" | "-$1") printf '%s\n' "${flags[i + 1]:-}" ;;
    esac
  done
}

# Looks for what would otherwise fail on every worker.
check_program() {
  local config path wanted shipped=no
  [ "${#flags[@]}" -gt 0 ] || die "$action needs the flags of the program after --, as in: $action --name=pod -- --config=... --workdir=gs://..."
  config="$(flag config)"
  [ -n "$config" ] || die "no config: -- --config=configs/FILE.py"
  config="${config%%:*}"
  git -C "$ROOT" rev-parse >/dev/null 2>&1 || die "$ROOT is no git repository, and git lists what is shipped: clone the repository"
  [ -e "$ROOT/$config" ] && git -C "$ROOT" ls-files --cached --others --exclude-standard --error-unmatch -- "$config" >/dev/null 2>&1 && shipped=yes
  [ "$shipped" = yes ] || die "the config $config is not a file of this repository (a path from its root, which git does not ignore), so it would not be shipped"
  for wanted in $1; do
    path="$(flag "$wanted")"
    [ -n "$path" ] || die "no --$wanted: -- --$wanted=gs://BUCKET/PATH"
    is_shared "$path" || die "--$wanted=$path is not a place that all workers see: give gs://BUCKET/PATH, or name a file system that they share with --shared=DIRECTORY"
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
      [ "${#tier[@]}" -eq 0 ] || [ "${tier[0]}" = "$argument" ] || die "--spot and --reserved exclude each other"
      tier=("$argument")
      ;;
    --network=?*) network+=("$argument") ;;
    --subnetwork=?*) network+=("$argument") ;;
    --service_account=?*) network+=("--service-account=${argument#*=}") ;;
    --internal_ips) network+=(--internal-ips) route=(--internal-ip) ;;
    --mount=gs://*) die "$argument: expected the bucket's name alone, as in --mount=BUCKET:DIRECTORY" ;;
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
    -*) die "launch/tpu_pod.sh does not know $argument (launch/tpu_pod.sh --help lists its options; those of the program come after --)" ;;
    *) die "launch/tpu_pod.sh has no action $argument: expected create, train, evaluate, logs or delete" ;;
  esac
done

[ -n "$action" ] || die "no action: expected create, train, evaluate, logs or delete (launch/tpu_pod.sh --help)"
[ -n "$name" ] || die "no name: --name=NAME (or \$TPU_NAME)"
# https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.queuedResources/create
[[ $name =~ ^[A-Za-z0-9_.~+%][A-Za-z0-9_.~+%-]*$ ]] || die "--name=$name: expected letters, digits and any of _ . ~ + % -, not beginning with -"
[[ -z $zone || $zone =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || die "--zone=$zone: expected a zone, such as us-central2-b"
[[ -z $accelerator_type || $accelerator_type =~ ^v[0-9]+[a-z]*-[0-9]+$ ]] || die "--accelerator_type=$accelerator_type: expected a type, such as v4-32 or v5litepod-16"
[[ $worker =~ ^([0-9]+|all)$ ]] || die "--worker=$worker: expected a number, or all"
[[ $lines =~ ^[0-9]+$ ]] || die "--lines=$lines: expected a number"
[[ $poll =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "--poll=$poll: expected seconds"
[ "$dry_run" = yes ] || command -v gcloud >/dev/null 2>&1 || die "there is no gcloud here: install the Google Cloud CLI, and log in (gcloud auth login)"
place=(${project:+"--project=$project"} ${zone:+"--zone=$zone"})
reach=(${place[@]+"${place[@]}"} ${route[@]+"${route[@]}"} --quiet) # quiet: a key for ssh is made without questions
exec 3>&1 # where --dry_run prints, also from within $(...)

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
      [ "$watch" = yes ] || die "$name is $now, not ACTIVE: launch/tpu_pod.sh create (or $action --watch, which asks for it)"
      create
    fi
    launch || die "not all workers of $name have started (the reason is above). Mend it, and run this again"
    if [ "$watch" = yes ] && [ "$dry_run" = no ]; then watch_job; fi
    ;;
  logs) on_workers "$worker" "$(quoted flamingo_jax/launch/tpu_worker.sh log "$lines" ${follow:+follow})" ;;
  delete) queued_resources delete --force ${quiet[@]+"${quiet[@]}"} ;;
esac
