#!/usr/bin/env bash
# Trains and evaluates on GPU nodes of a Slurm cluster. It is a batch script, and runs in an
# allocation of salloc too. Submit it from the root of the clone, which all nodes must see:
#
#   launch/slurm.sh install      once, on a node with a network: makes .venv with CUDA's packages
#   sbatch --nodes=2 --gpus-per-node=8 --exclusive --time=24:00:00 launch/slurm.sh train --
#          --config=configs/flamingo_3b.py --workdir=/shared/run --config.mesh.data=-1
#   sbatch --nodes=1 --gpus-per-node=1 --cpus-per-task=16 launch/slurm.sh evaluate --
#          --config=configs/evaluate.py --checkpoint=/shared/run --output=/shared/report
#
# Each node has one process, or each GPU (--per=gpu). Before the time is over, or when the job is
# preempted, Slurm sends SIGTERM: the processes save and end, and the job is queued again. It goes on
# from its newest checkpoint. A process that fails ends the others; they are started again in the
# same allocation, at most 3 times without a newer step.
#
#   --per=node|gpu       what has a process of its own; node
#   --restarts=NUMBER    restarts without a newer step, after which it gives up; 3
#   --pause=SECONDS      before the first of them; 10. The second waits twice as long, and so on
#   --requeue=yes|no     whether a job that was asked to end is queued again; yes
#   --port=NUMBER        of the first node, where the processes meet; by default it follows from
#                        the number of the job
#   --logs=DIRECTORY     logs of the processes: log.0, log.1, ...; slurm-JOB.logs by default. All
#                        nodes must see it
#   -- FLAGS             flags of the program
#
# sbatch's own options come before the name of this script. These are its defaults:
#SBATCH --job-name=flamingo_jax
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
set -euo pipefail

ACTIONS="install, train or evaluate"

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }
usage() { sed -n '2,/^[^#]/{/^#SBATCH/s/^#SBATCH/ /p;/^# /s/^# //p;/^#$/s/^#//p;}' "${BASH_SOURCE[0]}"; }

# Sets ROOT. Slurm runs a copy of a batch script, in a folder of its own.
find_root() {
  local here
  here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
  for ROOT in "$here" "${SLURM_SUBMIT_DIR:-}"; do
    [ ! -e "$ROOT/launch/environment.sh" ] || return 0
  done
  die "${SLURM_SUBMIT_DIR:-$here} is not the root of the clone: submit from there," \
    "cd flamingo_jax && sbatch launch/slurm.sh ..."
}

# Makes or finds the environment; sets PYTHON, and goes to the root of the clone.
prepare() {
  export FLAMINGO_EXTRA="${FLAMINGO_EXTRA-cuda}"
  # shellcheck source=launch/environment.sh
  source "$ROOT/launch/environment.sh"
}

# Starts a process and waits until it ends; sets $status. A signal is passed on as SIGTERM, once: a
# second one would end the program at once, unsaved. $1: where its output goes; the rest: a command.
run() {
  local output="$1" last
  shift
  # Its own session: a signal to the processes of this job reaches it through this shell alone.
  setsid "$@" </dev/null >>"$output" 2>&1 &
  child=$!
  [ "$asked" = no ] || pass_on
  status=0
  while :; do
    interrupted=no last=$status status=0
    wait "$child" || status=$?
    [ "$interrupted" = yes ] || break
  done
  [ "$status" != 127 ] || status=$last # it had ended already
  kill -KILL -- "-$child" 2>/dev/null || true # what it left behind
  child=""
}

ask() {
  interrupted=yes
  [ "$asked" = no ] || return 0
  asked=yes
  : >"$logs/asked" || true
  [ -z "$child" ] || pass_on
}

# The program is a child of `task`. The job asks the tasks of all nodes, since srun ends a step of
# which it is asked to end, after the cluster's KillWait.
pass_on() {
  if [ "$role" = task ]; then
    kill -TERM "$child" 2>/dev/null || true
  else
    scancel --signal=TERM "$SLURM_JOB_ID" || true
  fi
}

# --- one process, on its node ------------------------------------------------------------------

# Prints the GPUs of this process, as numbers among those that it sees. JAX would take one GPU for
# each process on a Slurm cluster.
devices() {
  local seen=0
  if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
    seen="$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c .)"
  elif [ -n "${SLURM_GPUS_ON_NODE:-}" ]; then
    seen="$SLURM_GPUS_ON_NODE"
  elif command -v nvidia-smi >/dev/null 2>&1; then
    seen="$(nvidia-smi -L | grep -c '^GPU')" || seen=0
  fi
  if [ "$seen" -le 1 ]; then
    echo 0
  elif [ "$per" = gpu ]; then
    echo "$SLURM_LOCALID"
  else
    seq -s , 0 $((seen - 1))
  fi
}

# Runs the program as one process of the job. $1: directory of the logs; $2: node or gpu; $3: the
# address where the processes meet; the rest: the module and its flags.
task() {
  local log
  role=task logs="$1" per="$2" log="$1/log.$SLURM_PROCID"
  trap ask TERM INT HUP USR1 USR2
  export JAX_COORDINATOR_ADDRESS="$3" JAX_NUM_PROCESSES="$SLURM_NTASKS"
  export JAX_PROCESS_ID="$SLURM_PROCID" PYTHONUNBUFFERED=1 JAX_LOCAL_DEVICE_IDS
  JAX_LOCAL_DEVICE_IDS="$(devices)"
  shift 3
  prepare
  # An empty line ends what a killed program left half written.
  printf '\n== %s on %s: python -m %s\n' "$(date -u '+%Y-%m-%d %H:%M:%S UTC')" \
    "$(uname -n)" "$*" >>"$log" || die "cannot write $log. Is the disk full?"
  run "$log" "$PYTHON" -m "$@"
  echo "$status" >"$logs/status.new.$SLURM_PROCID"
  mv "$logs/status.new.$SLURM_PROCID" "$logs/status.$SLURM_PROCID"
  exit "$status"
}

# --- the job -----------------------------------------------------------------------------------

# Starts the processes on all nodes, and waits until all have ended. $1: number of this start.
launch() {
  local nodes="$SLURM_JOB_NUM_NODES" each=1 address threads=()
  if [ "$per" = gpu ]; then
    each="${SLURM_GPUS_ON_NODE:-}"
    [ -n "$each" ] || die "--per=gpu, and this job has no GPUs: sbatch --gpus-per-node=8 ..."
  fi
  # srun would give one core to each process.
  [ -z "${SLURM_CPUS_ON_NODE:-}" ] || threads=(--cpus-per-task=$((SLURM_CPUS_ON_NODE / each)))
  address="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
  # A port of its own for each start, above those that Linux gives to connections.
  address="$address:${port:-$((61440 + (16 * SLURM_JOB_ID + $1) % 4096))}"
  rm -f "$logs"/status.* "$logs/asked"
  : >"$logs/srun"
  # The processes end each other, with the reason; srun would kill them sooner. It waits 10 minutes.
  run "$logs/srun" srun --nodes="$nodes" --ntasks=$((nodes * each)) --ntasks-per-node="$each" \
    ${threads[@]+"${threads[@]}"} --kill-on-bad-exit=0 --wait=600 \
    "$ROOT/launch/slurm.sh" task "$logs" "$per" "$address" "flamingo_jax.$action" "${flags[@]}"
  count=$((nodes * each))
  [ ! -e "$logs/asked" ] || asked=yes # Slurm may signal the processes, and not this shell
}

# Prints "NUMBER STATUS" for each process, the one that ended first first; "killed" for those that
# left none.
statuses() {
  local i
  find "$logs" -name 'status.*' -printf '%T@ %f ' -exec cat {} \; | sort -n \
    | sed -n 's/^[^ ]* status\.\([0-9]*\) /\1 /p'
  for ((i = 0; i < count; i++)); do
    [ -e "$logs/status.$i" ] || echo "$i killed"
  done
}

# Prints the newest step in the log of process 0 and the last line of that of process $1: STEP|LINE.
log_end() {
  tail -c 200000 "$logs/log.$1" 2>/dev/null | tr '\r' '\n' | awk -f "$ROOT/launch/log_end.awk"
}

# Queues the job again, if it is a batch job that nobody has cancelled. Ends the script.
leave() {
  local state
  say "asked to end: all processes of flamingo_jax.$action have ended"
  state="$(scontrol show job --oneliner "$SLURM_JOB_ID" 2>/dev/null)" || state=""
  if [ "$requeue" = yes ] && grep -q 'BatchFlag=1' <<<"$state"; then
    if ! grep -q 'JobState=RUNNING' <<<"$state"; then
      say "the job is $(grep -o 'JobState=[A-Z_]*' <<<"$state"), so it is not queued again here"
    elif scontrol requeue "$SLURM_JOB_ID"; then
      say "job $SLURM_JOB_ID is queued again"
    else
      say "job $SLURM_JOB_ID cannot be queued again (the reason is above): the same command goes on"
    fi
  fi
  exit 75
}

# Runs the program until it is done, or until starting it again does not help.
#
# What the statuses of its processes (flamingo_jax/core/exit_status.py) lead to:
#     all 0                  done
#     any, after a SIGTERM   the job is queued again (leave)
#     130, 143               the end: somebody stopped the program
#     any other              a restart; at most $restarts times without a newer step
job() {
  local starts=0 failures=0 best=-1 found first why step line
  trap ask TERM INT HUP USR1 USR2
  while :; do
    launch "$starts"
    starts=$((starts + 1))
    found="$(statuses)"
    if ! grep -qv ' 0$' <<<"$found"; then
      say "flamingo_jax.$action has ended on all nodes"
      return
    fi
    [ "$asked" = no ] || leave
    # The process that failed first, of its own accord: others ended because of it.
    first="$(grep -Ev ' (0|75|76|killed)$' <<<"$found" | head -n 1)" \
      || first="$(grep -v ' 0$' <<<"$found" | head -n 1)"
    line="$(log_end "${first%% *}")"
    why="process ${first%% *} ended first, with ${first##* }: ${line#*|}"
    if ! grep -qv ' killed$' <<<"$found" && [ -s "$logs/srun" ]; then
      why="srun: $(tail -n 1 "$logs/srun")"
    fi
    case "${first##* }" in
      130 | 143) die "the program was stopped by hand ($why). The same command goes on" ;;
    esac
    step="$(log_end 0)" step="${step%%|*}"
    [ "${step:--1}" -le "$best" ] || best="${step:--1}" failures=0
    failures=$((failures + 1))
    [ "$failures" -le "$restarts" ] \
      || die "it failed $failures times without a newer step; $why. Logs: $logs"
    say "$why; starts again (restart $failures of $restarts without a newer step)"
    run /dev/null sleep $((failures * pause))
    [ "$asked" = no ] || leave
  done
}

# --- the command line --------------------------------------------------------------------------

action="" per=node restarts=3 pause=10 requeue=yes port="" logs="" flags=()
role=job asked=no interrupted=no child="" status=0 count=0
find_root
if [ "${1:-}" = task ]; then
  shift
  task "$@"
fi
while [ $# -gt 0 ]; do
  argument="$1"
  shift
  case "$argument" in
    install | train | evaluate)
      [ -z "$action" ] || die "two actions, $action and $argument: give one"
      action="$argument"
      ;;
    --per=node | --per=gpu) per="${argument#*=}" ;;
    --restarts=*) restarts="${argument#*=}" ;;
    --pause=*) pause="${argument#*=}" ;;
    --requeue=yes | --requeue=no) requeue="${argument#*=}" ;;
    --port=*) port="${argument#*=}" ;;
    --logs=?*) logs="${argument#*=}" ;;
    -h | --help) usage; exit ;;
    --)
      flags=("$@")
      break
      ;;
    -*)
      die "launch/slurm.sh does not know $argument" \
        "(launch/slurm.sh --help lists its options; those of the program come after --)"
      ;;
    *) die "launch/slurm.sh has no action $argument: expected $ACTIONS" ;;
  esac
done
[ -n "$action" ] || die "no action: expected $ACTIONS (launch/slurm.sh --help)"
[[ $restarts =~ ^[0-9]{1,6}$ ]] || die "--restarts=$restarts: expected a number"
[[ $pause =~ ^[0-9]{1,6}$ ]] || die "--pause=$pause: expected whole seconds"
[[ $port =~ ^([1-9][0-9]{0,4})?$ ]] || die "--port=$port: expected a number from 1 to 65535"
if [ "$action" = install ]; then
  prepare
  say "the environment is in $VENV"
  exit
fi
[ "${#flags[@]}" -gt 0 ] || die "$action needs the flags of the program after --," \
  "as in: sbatch launch/slurm.sh $action -- --config=..."
[ -n "${SLURM_JOB_ID:-}" ] || die "this is no Slurm allocation (SLURM_JOB_ID is not set):" \
  "sbatch --nodes=2 --gpus-per-node=8 --exclusive launch/slurm.sh $action -- ..., or salloc first"
for name in SLURM_JOB_NUM_NODES SLURM_JOB_NODELIST; do
  [ -n "${!name:-}" ] || die "SLURM_JOB_ID is set, but not $name: run this in the allocation itself"
done
[ -n "$logs" ] || logs="$PWD/slurm-$SLURM_JOB_ID.logs"
mkdir -p "$logs" || die "cannot make $logs: give a directory that all nodes see, --logs=DIRECTORY"
logs="$(cd "$logs" && pwd)"
prepare
say "job $SLURM_JOB_ID on $SLURM_JOB_NUM_NODES nodes; the logs of the processes: $logs"
job
