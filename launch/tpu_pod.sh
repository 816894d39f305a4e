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
#                              [--worker=3 | --worker=all] [--slice=1 | --slice=all]
#                              [--lines=100] [--follow]
#   launch/tpu_pod.sh delete   --name=pod --zone=us-central2-b [--quiet]
#
# create requests the slice and waits until it is ready. A slice that failed or was preempted is
# requested again. train and evaluate copy this repository, with uncommitted changes but without
# ignored files, to all workers, install it, and start the program on all of them. The program
# continues without this machine. A running job is ended first: it has 300 s to save. Started again,
# train continues from the newest checkpoint in the workdir.
#
# --watch goes on through any number of preemptions, failed requests and hours without a network.
# It ends when the program is done; when the cause is yours (no quota, permission or billing, an
# unknown type; a program that fails again and again without a newer step, or is stopped by hand);
# and when you delete the slice or start another job on it. Ctrl-C ends the watch, not the job.
#
#   --name=NAME               of the slice and of its queued resource (or $TPU_NAME)
#   --project=ID --zone=ZONE  (or $PROJECT_ID, $ZONE; else gcloud's own settings)
#   --accelerator_type=TYPE   such as v4-32, v5p-128, v5litepod-16, v6e-256 (or $ACCELERATOR_TYPE)
#   --slices=N                N slices of this type as one (Multislice; or $SLICES), for a config
#                             with mesh.slices=N. All actions on them need it
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
#   --poll=SECONDS            between two checks of a state; 30. After refusals the waits double,
#                             up to 20 times as long
#   --patience=SECONDS        for an answer of gcloud; 300. Copying and installing may take ten
#                             times as long
#   --dry_run                 prints the commands, and runs none
#   -- FLAGS                  flags of the program
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
MAX_RESTARTS=3   # of a program that fails without a newer step
LONG_ENOUGH=600  # seconds; so long a run is progress, if its log names no steps
MAX_TAKEN=10     # refusals of a name that no queued resource has
CONFIRM=3        # answers in a row, before a refusal or a deletion is believed
MAX_WAIT=20      # polls; the longest wait
MAX_ALONE=20     # polls that a worker may run, or not answer, when the others are done
SAVE_SECONDS=300 # that a running job has to save in, before it is killed
STUCK_SECONDS=60 # the same for a job of which a process is broken already
ARCHIVE=flamingo_jax.tar.gz
WORKER=flamingo_jax/launch/tpu_worker.sh
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

# --- gcloud ------------------------------------------------------------------------------------

# Runs gcloud in this terminal; with --dry_run prints the command.
run() {
  if [ "$dry_run" = yes ]; then quoted "$@" >&3; else "$@"; fi
}

# Sleeps. A signal ends the script at once, and not after the sleep: so a process is waited for.
nap() {
  sleep "$1" &
  child=$!
  wait "$child" || true
  child=""
}

# Calls gcloud for at most $1 seconds; sets $answer and $errors. Returns its status, or 124.
ask() {
  local seconds="$1" status=0 limit=()
  shift
  answer="" errors=""
  if [ "$dry_run" = yes ]; then
    quoted gcloud "$@" >&3
    return
  fi
  ! command -v timeout >/dev/null 2>&1 || limit=(timeout -k 10 "$seconds")
  mkdir -p "$scratch" # a cleaner of /tmp may come in a watch of weeks
  ${limit[@]+"${limit[@]}"} gcloud "$@" </dev/null >"$scratch/out" 2>"$scratch/err" 3>&- &
  child=$!
  wait "$child" || status=$?
  child=""
  answer="$(tr -d '\000' <"$scratch/out")"
  errors="$(tr -d '\000' <"$scratch/err")"
  [ "$status" != 124 ] || errors="ERROR: no answer of gcloud within $seconds s"$'\n'"$errors"
  return "$status"
}

# Prints in one line why gcloud refused: the error of a worker, of gcloud, or the last line.
reason() {
  local text="$errors" found
  [[ $text == *[![:space:]]* ]] || text="$answer"
  found="$(grep -m 1 '^error: ' <<<"$text" || grep -m 1 '^ERROR: ' <<<"$text" \
    || grep -v '^[[:space:]]*$' <<<"$text" | tail -n 1)" || found="no reason was given"
  sed -E 's/ *\[EID[^]]*\]//; s/^(ERROR|error): //; s/[[:cntrl:]]//g' <<<"${found:0:400}"
}

# Prints the kind of a refusal: busy (it passes), login (until somebody logs in), user (it stays
# until the command or the project is changed), or unknown.
#
# An error of the API begins with its status, "(gcloud.a.b) NOT_FOUND: ...", or the code of HTTP,
# which decides: the message after it may name anything. Only where there is none, words decide.
# https://cloud.google.com/apis/design/errors
kind() {
  local text="$1" begin='^((ERROR|error): )?(\(gcloud[^)]*\) )?' names number
  local status code thing wrong little
  names='INVALID_ARGUMENT|NOT_FOUND|PERMISSION_DENIED|OUT_OF_RANGE|UNIMPLEMENTED|UNAUTHENTICATED'
  names="($names|RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL|ABORTED)"
  number='(http ?error|response ?error|http|error|code|status)?[ :=[]*[1-5][0-9][0-9]([^0-9]|$)'
  status="$(grep -m 1 -oE -e "$begin$names:" -e "\"status\": *\"$names\"" <<<"$text")" \
    || status=""
  code="$(grep -m 1 -oEi "$begin$number" <<<"$text" | grep -oE '[1-5][0-9][0-9]' | tail -n 1)" \
    || code=""
  thing='(zone|location|accelerator|type|runtime|version|network|reservation|project|account)'
  wrong='(not (found|supported|valid|enabled|available)|unknown|not exist|invalid)'
  little='(no|more|enough|insufficient|lack of|out of) ([a-z]+ )?capacity|capacity (is|was) (not|un)'
  has() { grep -Eqi -e "$1" <<<"$text"; }
  if has 'quota' && has "limit(_value)?['\"]?( of|:|=)? *['\"]?0(\.0)?([^0-9.]|\.?\$)"; then
    echo user # a limit that others use up passes; a limit of 0 does not
    return
  fi
  has 'rate.?limit.?exceeded' && code=429 status=""
  case "$status $code" in
    *RESOURCE_EXHAUSTED* | *UNAVAILABLE* | *DEADLINE_EXCEEDED* | *INTERNAL* | *ABORTED* | *' 429' \
      | *' 5'??)
      echo busy
      return
      ;;
    *UNAUTHENTICATED* | *' 401')
      echo login
      return
      ;;
    *INVALID_ARGUMENT* | *NOT_FOUND* | *PERMISSION_DENIED* | *OUT_OF_RANGE* | *UNIMPLEMENTED* \
      | *' 400' | *' 404')
      echo user
      return
      ;;
  esac
  if has "$begin(argument -|unrecognized arguments|invalid (choice|value))"; then
    echo user # of gcloud's own parser
  elif has "exhausted|$little|stockout|unavailable|deadline|currently not" \
    || has 'name resolution|reachable|connection|timed.?out|no answer|internal error'; then
    echo busy
  elif has 'invalid_grant|reauth|gcloud auth login|active account|unauthenticated'; then
    echo login
  elif has 'permission|forbidden|billing|service_disabled|has not been used|not configured' \
    || has 'invalid_argument|bad request|unrecognized arguments|invalid (choice|value)' \
    || has "not_found|required property|must be specified|$thing.*$wrong|$wrong.*$thing"; then
    echo user
  else
    echo unknown
  fi
}

# Waits longer from time to time: one poll, 2, 4 ... MAX_WAIT, each up to a quarter more or less, so
# that not all watches come at once. Says why, once. $1: the number of this wait; $2: the reason.
back_off() {
  local seconds
  seconds="$(awk -v n="$1" -v poll="$poll" -v max="$MAX_WAIT" -v random="$RANDOM" 'BEGIN {
    polls = n < 6 ? 2 ^ (n - 1) : max
    printf "%.1f", poll * polls * (0.75 + random / 65534) }')"
  if [ "$2" != "$said" ]; then
    say "$2; again in $seconds s"
  elif [ "$1" -le 6 ]; then
    say "still so; again in $seconds s"
  fi
  said="$2"
  nap "$seconds"
}

# Calls gcloud until it does not refuse. Ends the script if the cause is the user's.
# $1: what for; $2: a refusal that is an answer (then it returns 1); the rest: gcloud's arguments.
persist() {
  local task="$1" expected="$2" tries=0 refused=0 gives_up status=0
  shift 2
  until ask "$patience" "$@"; do
    if [ -n "$expected" ] && [[ $errors == *"$expected"* ]]; then
      status=1
      break
    fi
    tries=$((tries + 1)) gives_up=no
    case "$(kind "$errors")" in
      user) # for a moment, a permission may be missing that is there
        refused=$((refused + 1))
        if [ "$begun" = no ] || [ "$refused" -ge "$CONFIRM" ]; then gives_up=yes; fi
        ;;
      login) [ "$begun" = yes ] || gives_up=yes ;; # later, somebody may log in again
      *) refused=0 ;;
    esac
    [ "$persistent $gives_up" = "yes no" ] || die "gcloud cannot $task: $(reason)"
    back_off "$tries" "gcloud cannot $task: $(reason)"
  done
  [ "$tries" = 0 ] || say "gcloud can $task again, after $tries refusals"
  said=""
  return "$status"
}

# Runs a command on all workers. $1: seconds; $2: the command.
on_workers() {
  ask "$1" compute tpus "${hosts[@]}" ssh "$name" "${reach[@]}" "${everywhere[@]}" --command="$2"
}

# Sets $now to the state of the queued resource: NONE, or a state of Cloud TPU, such as
# WAITING_FOR_RESOURCES, ACTIVE or SUSPENDED.
look() {
  local which=(describe "$name" ${place[@]+"${place[@]}"} --format='value(state.state)')
  if persist "describe $name" NOT_FOUND compute tpus queued-resources "${which[@]}"; then
    now="$(awk 'NF { last = $1 } END { print last ? last : "UNKNOWN" }' <<<"$answer")"
    [ "$dry_run" = no ] || now=ACTIVE
  else
    now=NONE
  fi
}

# Sets $node to the state of the slice's node: MISSING, UNKNOWN, or a state of Cloud TPU: a request
# may be ACTIVE while its node is PREEMPTED. Of several slices it is the first that is not READY.
# https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.nodes#State
look_at_node() {
  local i
  if [ "$slices" = 1 ]; then
    look_at "$name"
    return
  fi
  for ((i = 0; i < slices; i++)); do
    look_at "$name-$i"
    [ "$node" = READY ] || return 0
  done
}

# Sets $node to the state of the node of this name.
look_at() {
  local which=(describe "$1" ${place[@]+"${place[@]}"} --format='value(state)')
  if ask "$patience" compute tpus tpu-vm "${which[@]}"; then
    node="$(awk 'NF { last = $1 } END { print last ? last : "UNKNOWN" }' <<<"$answer")"
  elif [[ $errors == *NOT_FOUND* ]]; then
    node=MISSING
  else
    node=UNKNOWN
  fi
}

# --- the slice ---------------------------------------------------------------------------------

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

# Requests the slice. Returns 1 if its name exists already.
request() {
  local chips=(--accelerator-type="$accelerator_type" --runtime-version="$runtime_version")
  local nodes=(--node-id="$name")
  [ "$slices" = 1 ] || nodes=(--node-count="$slices" --node-prefix="$name")
  persist "request $name" ALREADY_EXISTS compute tpus queued-resources create "$name" \
    ${place[@]+"${place[@]}"} "${nodes[@]}" "${chips[@]}" ${tier[@]+"${tier[@]}"} \
    ${network[@]+"${network[@]}"}
}

# Deletes the request of this name, of which nothing can come.
remove() {
  say "$1; asking for it anew"
  persist "delete the old request $name" NOT_FOUND compute tpus queued-resources delete "$name" \
    ${place[@]+"${place[@]}"} --force --quiet || true
}

# Prints why a request failed, if Cloud TPU says it.
why_failed() {
  local format='value(state.failedData.error.code,state.failedData.error.message)' status=""
  local which=(describe "$name" ${place[@]+"${place[@]}"} --format="$format")
  ask "$patience" compute tpus queued-resources "${which[@]}" || answer=""
  case "$answer" in # google.rpc.Code
    3$'\t'*) status=INVALID_ARGUMENT ;;
    5$'\t'*) status=NOT_FOUND ;;
    7$'\t'*) status=PERMISSION_DENIED ;;
    8$'\t'*) status=RESOURCE_EXHAUSTED ;;
    13$'\t'*) status=INTERNAL ;;
    14$'\t'*) status=UNAVAILABLE ;;
  esac
  answer="${answer#*$'\t'}"
  answer="$({ grep -v '^[[:space:]]*$' || true; } <<<"$answer" | paste -s -d ' ' -)"
  [[ -z $status || $answer == "$status:"* ]] || answer="$status: $answer"
  printf '%s\n' "${answer:0:400}"
}

# Ends the script: nothing comes of a request. $1: the reason, if it is known.
will_not_come() {
  local explain=(gcloud compute tpus queued-resources describe "$name" ${place[@]+"${place[@]}"})
  die "$name is $now and will not come. The reason: ${1:-$(quoted "${explain[@]}")}"
}

# Waits until the slice is active, and requests it when it is not there. $1: ask, if a missing
# request is to be made; again, if it was made before: then somebody has deleted it, and does not
# want it.
obtain() {
  local wanted="$1" before="" started=$SECONDS lost=0 gone=0 taken=0 dead=0 why
  phase=waiting
  while :; do
    look
    case "$wanted $now" in
      "again ACTIVE" | "ask NONE") ;;
      *) [ "$now" = "$before" ] || say "$name: $now after $((SECONDS - started)) s" ;;
    esac
    before="$now"
    [ "$now" = NONE ] || gone=0
    case "$now" in
      ACTIVE)
        look_at_node
        case "$node" in
          READY | UNKNOWN) return ;;
          PREEMPTED | TERMINATED) lost=$CONFIRM ;;
          MISSING | DELETING | HIDDEN | HIDING) lost=$((lost + 1)) ;;
          *) lost=0 ;; # it is being made, repaired, or was stopped by somebody
        esac
        why="$name is ACTIVE, but its node is $node"
        if [ "$lost" -ge "$CONFIRM" ]; then
          check_request
          remove "$why"
          wanted=ask lost=0
          continue
        fi
        [ "$said" = "$why" ] || say "$why; waiting for it"
        said="$why"
        nap "$poll"
        ;;
      FAILED | SUSPENDED)
        check_request
        why=""
        [ "$now" != FAILED ] || why="$(why_failed)"
        if [ "$watch $wanted" = "no asked" ] || [ "$(kind "$why")" = user ]; then
          will_not_come "$why"
        fi
        dead=$((dead + 1))
        [ "$dead" = 1 ] || back_off $((dead - 1)) "$name is $now"
        remove "$name is $now${why:+ ($why)}"
        wanted=ask
        ;;
      SUSPENDING)
        [ "$watch $wanted" != "no asked" ] || will_not_come ""
        nap "$poll"
        ;;
      NONE)
        if [ "$wanted" != ask ]; then
          gone=$((gone + 1))
          [ "$gone" -lt "$CONFIRM" ] || die "somebody deleted $name, so $action ends." \
            "The same command requests it again"
          nap "$poll"
          continue
        fi
        check_request
        if request; then
          wanted=asked begun=yes
        else
          taken=$((taken + 1))
          [ "$taken" -le "$MAX_TAKEN" ] || die "$name is taken, but not by a queued resource" \
            "(by a TPU VM?): delete what has this name, or give another --name"
          back_off "$taken" "$name is still taken"
        fi
        ;;
      *) nap "$poll" ;; # it waits, or the old one is being deleted; a new word waits too
    esac
  done
}

# --- the job -----------------------------------------------------------------------------------

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
    | tar -C "$ROOT" --null --files-from=- -czf "$1.new" && mv "$1.new" "$1"
}

# Prints the command that shows the logs. $@: options.
logs_command() {
  local of_slices=()
  [ "$slices" = 1 ] || of_slices=(--slices="$slices")
  quoted launch/tpu_pod.sh logs --name="$name" ${of_slices[@]+"${of_slices[@]}"} \
    ${place[@]+"${place[@]}"} "$@"
}

# Shows what the workers and gcloud said, unless it was shown last; returns 1.
failed_step() {
  { tail -n 20 "$scratch/err"; tail -n 20 "$scratch/out"; } >"$scratch/now" 2>/dev/null || true
  cmp -s "$scratch/now" "$scratch/shown" || cat "$scratch/now" >&2
  mv "$scratch/now" "$scratch/shown"
  return 1
}

# Copies the repository to all workers, installs it and starts the program, after ending a running
# one. $1: seconds that the running one has to save. Returns non-zero if a worker failed.
launch() {
  local archive="$scratch/$ARCHIVE" installation begin
  job="$host-$$-$(date +%s)"
  if [ "$dry_run" = yes ]; then job=ID; else
    say "preparing all workers of $name (a running job has $1 s to save)"
  fi
  # The old job must be ended before the new one looks for the newest checkpoint. A script that
  # watches the old one sees in the file id that another job follows.
  on_workers $((patience + $1)) "set -e; mkdir -p flamingo_pod; echo $job >flamingo_pod/id; \
if [ -x $WORKER ]; then $WORKER stop $1; fi" || failed_step || return
  # Packed once: a watch starts again what it has started, whatever was edited since.
  if ! [ -e "$archive" ] && ! pack "$archive" 2>"$scratch/err"; then
    errors="error: cannot pack $ROOT: $(tail -n 1 "$scratch/err")"
    failed_step || return
  fi
  ask $((10 * patience)) compute tpus "${hosts[@]}" scp "$archive" "$name:$ARCHIVE" \
    "${reach[@]}" "${everywhere[@]}" || failed_step || return
  # Files of the last copy that are not in this one are removed; others (.venv, caches) stay.
  installation="set -e; mkdir -p flamingo_jax flamingo_pod"
  installation="$installation; tar -tzf $ARCHIVE | sort >flamingo_pod/new; touch flamingo_pod/files"
  installation="$installation; cd flamingo_jax; comm -23 ../flamingo_pod/files ../flamingo_pod/new"
  installation="$installation | xargs -r -d '\\n' rm -f --"
  installation="$installation; tar -xzf ../$ARCHIVE; mv ../flamingo_pod/new ../flamingo_pod/files"
  installation="$installation; $(quoted launch/tpu_worker.sh install ${mounts[@]+"${mounts[@]}"})"
  on_workers $((10 * patience)) "$installation" || failed_step || return
  begin=("$WORKER" start "$job" ${variables[@]+"${variables[@]}"} -- "flamingo_jax.$action")
  on_workers $((2 * patience)) "$(quoted "${begin[@]}" "${flags[@]}")" || failed_step || return
  [ "$dry_run" = yes ] \
    || say "started flamingo_jax.$action on all workers of $name; its log: $(logs_command --follow)"
}

# Starts the program, and tries until it runs on all workers of an active slice. Ends the script if
# a worker refuses again and again, as when a bucket does not exist. $1: seconds to save.
start_job() {
  local tries=0 refused=0 why of_workers
  phase=starting
  until launch "$1"; do
    tries=$((tries + 1))
    why="not all workers of $name have started: $(reason)"
    [[ $errors != *"given to another job"* ]] || die "$why. So $action ends"
    of_workers="$(grep '^error: ' <<<"$errors")" || of_workers=""
    if [ -n "$of_workers" ] && [ "$(kind "$of_workers")" != busy ]; then
      refused=$((refused + 1))
      if [ "$is_started" = no ] || [ "$refused" -gt "$MAX_RESTARTS" ]; then
        die "$why. Mend it, and run this again"
      fi
    fi
    back_off "$tries" "$why"
    obtain again
    phase=starting
  done
  phase=running begun=yes is_started=yes since=$SECONDS said=""
}

# Prints field $2 of the lines $1 of workers: 1 worker N: STATE, 2 job, 3 end, 4 step, 5 last line.
field() { cut -d '|' -f "$2" <<<"$1"; }

# Prints the workers that are not in some states, at most eight. $1: lines; $2: a pattern of states.
except() {
  field "$1" 1 | { grep -Ev -e ": ($2)\$" || true; } | sort -k 2,2n | awk '
    NR <= 8 { line = line (NR > 1 ? ";" : "") $0 }
    END { print line (NR > 8 ? "; and " NR - 8 " more" : "") }'
}

# Waits until the program ends, and starts it again after preemptions and failures.
watch_job() {
  local complete lines why silent=0 alone=0 unknown=""
  while :; do
    nap "$poll"
    look
    case "$now" in
      ACTIVE) ;;
      NONE | FAILED | SUSPENDED | SUSPENDING | DELETING | CREATING | ACCEPTED | PROVISIONING \
        | WAITING_FOR_RESOURCES)
        obtain again
        start_job "$STUCK_SECONDS"
        continue
        ;;
      *)
        [ "$now" = "$unknown" ] || say "$name is $now, which is no state that this script knows"
        unknown="$now"
        ;;
    esac

    complete=yes
    on_workers "$patience" \
      "if [ -x $WORKER ]; then $WORKER status; else echo \"worker \${HOSTNAME##*-}: none\"; fi" \
      || complete=no
    lines="$(grep -E '^worker [^:]*: ' <<<"$answer")" || complete=no
    if [ "$complete" = yes ]; then
      [ "$silent" = 0 ] || say "all workers of $name answer again"
      silent=0
    else # a worker is away, or the network is: the node says which
      silent=$((silent + 1))
      why="$(reason)"
      look_at_node
      case "$node" in
        PREEMPTED | TERMINATED | MISSING | DELETING | HIDDEN | HIDING)
          obtain again
          start_job "$STUCK_SECONDS"
          silent=0
          continue
          ;;
      esac
      why="some workers of $name do not answer, its node is $node: $why"
      if [ -z "$lines" ]; then
        back_off "$silent" "$why"
        continue
      fi
      [ "$silent" -gt 1 ] || say "$why"
    fi

    why="$(field "$lines" 2 | grep -vx -e "$job" -e '' -e 'worker .*' | head -n 1)" || true
    [ -z "$why" ] || die "$name was given to another job, $why, so $action ends"

    if [ -z "$(except "$lines" 'running')" ]; then
      alone=0
      continue
    elif [ -z "$(except "$lines" 'ended 0')" ]; then
      alone=$((alone + 1))
      if [ "$complete" = yes ] || [ "$alone" -gt "$MAX_ALONE" ]; then
        say "flamingo_jax.$action has ended on all workers$(
          [ "$complete" = yes ] || printf ' that answer')"
        return
      fi
      continue
    elif [ -z "$(except "$lines" 'ended (0|75)|running')" ] && grep -q ': running' <<<"$lines"; then
      alone=$((alone + 1))
      [ "$alone" -gt "$MAX_ALONE" ] || continue # a worker still saves, or it does not end
    fi
    alone=0
    restart_job "$lines"
  done
}

# Starts again a job that is broken, or ends the script. $1: the workers' lines.
#
# What its statuses (flamingo_jax/core/exit_status.py) lead to:
#     75, ended as asked         a restart, after two polls: a slice that asks may go away
#     76, killed, rebooted       a restart; the second without progress waits longer, and so on
#     130, 143                   the end: it was stopped by hand, unless the slice goes away
#     any other: its own error   a restart, at most MAX_RESTARTS times without progress
# Progress is a step in the log that is newer than all before. In a log without steps, progress is a
# run of LONG_ENOUGH.
restart_job() {
  local lines="$1" step first why
  say "the job is broken: $(except "$lines" 'running')"
  step="$(field "$lines" 4 | grep -x '[0-9][0-9]*' | sort -n | tail -n 1)" || step=""
  if [ "${step:--1}" -gt "$best" ] \
    || { [ -z "$step" ] && [ $((SECONDS - since)) -ge "$LONG_ENOUGH" ]; }; then
    best="${step:-$best}" failures=0 restarts=0
  fi
  if grep -Eq '^worker [^:]*: ended (75|130|143)([|]|$)' <<<"$lines"; then
    # The notice of a preemption or of maintenance comes before the state changes.
    nap "$(awk -v poll="$poll" 'BEGIN { print 2 * poll }')"
    look
    [ "$now" = ACTIVE ] || return 0 # then the watch requests it again
  fi
  # The worker that failed first, by the clocks of the workers: others ended because of it.
  first="$(grep -E '^worker [^:]*: ended ' <<<"$lines" \
    | grep -Ev '^worker [^:]*: ended (0|75|76)([|]|$)' | sort -t '|' -k 3,3n | head -n 1)" \
    || first=""
  why="$(field "$first" 1)"
  case "$why" in
    '') ;;
    *": ended 130" | *": ended 143")
      die "$why: the program was stopped by hand, so $action ends. The same command goes on"
      ;;
    *)
      failures=$((failures + 1))
      [ "$failures" -le "$MAX_RESTARTS" ] \
        || die "it failed $failures times in a row, without a newer step." \
          "$why, first, with: $(field "$first" 5-)." \
          "Its log: $(logs_command ${node_of[@]+--slice=all} \
            --worker="$(sed -E 's/^worker ([0-9]*).*/\1/' <<<"$why")")"
      ;;
  esac
  restarts=$((restarts + 1))
  [ "$restarts" = 1 ] || back_off $((restarts - 1)) "restart $restarts without a newer step"
  start_job "$STUCK_SECONDS"
}

# Says what goes on without this script, and ends it.
interrupted() {
  trap '' INT TERM HUP
  [ -z "$child" ] || kill "$child" 2>/dev/null || true
  case "$phase" in
    waiting)
      say "interrupted. The request of $name stays in the queue: the same command waits for it" \
        "again, launch/tpu_pod.sh delete ends it"
      ;;
    starting)
      say "interrupted. Some workers of $name may run the program already: the same command" \
        "starts it again on all"
      ;;
    running)
      say "the watch ends, flamingo_jax.$action goes on on $name. Nobody requests the slice again" \
        "after a preemption. Its log: $(logs_command --follow)"
      ;;
  esac
  exit "$1"
}

# --- the command line --------------------------------------------------------------------------

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
  # as flamingo_jax/core/config_files.py: a file may have a colon in its name
  while [[ $config == *:* && ! -f $ROOT/$config ]]; do config="${config%:*}"; done
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
slices="${SLICES:-1}" slice=0 worker=0 lines=100 follow="" watch=no poll=30 patience=300 dry_run=no
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
    --slices=*) slices="${argument#*=}" ;;
    --slice=*) slice="${argument#*=}" ;;
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
    --mount=*) die "$argument: expected --mount=BUCKET:DIRECTORY" ;;
    --shared=*) die "$argument: expected a directory from /, as in --shared=/mnt/filestore" ;;
    --env=*) die "$argument: expected --env=NAME=VALUE" ;;
    --worker=*) worker="${argument#*=}" ;;
    --lines=*) lines="${argument#*=}" ;;
    --poll=*) poll="${argument#*=}" ;;
    --patience=*) patience="${argument#*=}" ;;
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
[[ $slices =~ ^[1-9][0-9]{0,3}$ ]] || die "--slices=$slices: expected a number, at least 1"
[[ $slice =~ ^([0-9]{1,4}|all)$ ]] || die "--slice=$slice: expected a number, or all"
[ "$slice" = all ] || [ "$slice" -lt "$slices" ] \
  || die "--slice=$slice: expected less than --slices=$slices, the number of slices; or all"
[[ $worker =~ ^([0-9]+|all)$ ]] || die "--worker=$worker: expected a number, or all"
[[ $lines =~ ^(0|[1-9][0-9]{0,8})$ ]] || die "--lines=$lines: expected a number"
[[ $poll =~ ^[0-9]+(\.[0-9]+)?$ && $poll == *[1-9]* ]] \
  || die "--poll=$poll: expected seconds, more than 0"
[[ $patience =~ ^[1-9][0-9]{0,8}$ ]] \
  || die "--patience=$patience: expected whole seconds, at least 1"
[ "$dry_run" = yes ] || command -v gcloud >/dev/null 2>&1 \
  || die "there is no gcloud here: install the Google Cloud CLI, and log in (gcloud auth login)"
place=(${project:+"--project=$project"} ${zone:+"--zone=$zone"})
# --quiet: gcloud makes a key for ssh without questions.
reach=(${place[@]+"${place[@]}"} ${route[@]+"${route[@]}"} --quiet)
# A slice is a node, which ssh reaches by its name; several are the nodes of the queued resource.
# JAX and libtpu read from the hosts' metadata which slice they are, and where the first one is.
hosts=(tpu-vm) everywhere=(--worker=all) node_of=()
if [ "$slices" -gt 1 ]; then
  hosts=(queued-resources)
  everywhere=(--node=all --worker=all --batch-size=all)
  node_of=(--node="$slice")
fi
exec 3>&1 # --dry_run prints here, also inside of $(...)

# What the functions set: gcloud's answer, the states, the id and the start of the job, what was
# said last. When a request is accepted ($begun), a refusal does not end the script at once; when a
# job has started, a refusal of the workers does not.
answer="" errors="" now="" node="" job="" said="" since=0 begun=no is_started=no
best=-1 failures=0 restarts=0 # the newest step; since it, failures of the program and all restarts
phase="" child=""
persistent="$watch"
host="$(hostname | tr -c 'A-Za-z0-9.\n-' _)"
scratch="${TMPDIR:-/tmp}"
if [ "$dry_run" = no ]; then
  scratch="$(mktemp -d)" || die "cannot make a directory in ${TMPDIR:-/tmp}"
  trap 'rm -rf "$scratch"' EXIT
  trap 'interrupted 130' INT
  trap 'interrupted 143' TERM HUP
fi

case "$action" in
  create)
    persistent=yes
    check_request
    if [ "$dry_run" = yes ]; then look; request; else obtain ask; fi
    ;;
  train | evaluate)
    if [ "$action" = train ]; then check_program workdir; else check_program "checkpoint output"; fi
    [ -z "$accelerator_type" ] || check_request
    if [ "$watch" = yes ] && [ "$dry_run" = no ]; then
      [ -n "$accelerator_type" ] || say "note: without --accelerator_type this watch cannot" \
        "request $name again after a preemption"
      obtain ask
      start_job "$SAVE_SECONDS"
      watch_job
      exit
    fi
    look
    [ "$now" = ACTIVE ] || die "$name is $now, not ACTIVE: launch/tpu_pod.sh create" \
      "(or $action --watch, which asks for it)"
    phase=starting
    launch "$SAVE_SECONDS" || die "not all workers of $name have started (the reason is above)." \
      "Mend it, and run this again"
    ;;
  logs)
    show=("$WORKER" log "$lines" ${follow:+follow})
    run gcloud compute tpus "${hosts[@]}" ssh "$name" "${reach[@]}" \
      ${node_of[@]+"${node_of[@]}"} --worker="$worker" --command="$(quoted "${show[@]}")" </dev/null
    ;;
  delete)
    run gcloud compute tpus queued-resources delete "$name" ${place[@]+"${place[@]}"} \
      --force ${quiet[@]+"${quiet[@]}"}
    ;;
esac
